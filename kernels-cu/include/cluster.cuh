// Clusters of CTAs on Hopper: barriers, and stores into another CTA's shared memory.
//
// A rank is a CTA's number in its cluster. Shared memory has the same layout in all CTAs of a cluster, so an address of one's
// own names the same variable in each.
#pragma once
#include "hopper.cuh"

// What a thread wrote before it arrives is visible to the cluster's threads after they have waited. All threads of all CTAs
// arrive, then wait, in turn.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
// The same where no data goes with it: the other waits for all memory accesses of the thread.
__device__ __forceinline__ void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }

// This CTA's.
__device__ __forceinline__ uint32 cluster_rank() {
  uint32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// The address in the shared memory of a rank of what is at `address` here.
__device__ __forceinline__ uint32 address_in_rank(uint32 address, uint32 rank) {
  uint32 there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// As copy_bytes, to the same place in all CTAs of `ranks`, a bit each; the bytes count at the barrier of each.
__device__ __forceinline__ void copy_bytes_to_ranks(uint32 target, const void* source, uint32 bytes, uint32 barrier, uint16 ranks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(target),
      "l"(source), "r"(bytes), "r"(barrier), "h"(ranks)
      : "memory");
}
// At a barrier of any CTA, by its address there: a stage that only the tensor cores have read is given back. It publishes
// nothing that the thread wrote; an arrival that does waits for all memory accesses of the thread.
__device__ __forceinline__ void barrier_arrive_there(uint32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// As barrier_wait, for what other CTAs have stored by store_rank.
__device__ __forceinline__ void barrier_wait_cluster(uint32 barrier, uint32 parity) {
  uint32 done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!__all_sync(FULL_MASK, done));
}
// Stores to any CTA; the bytes count at its barrier. Both addresses are of that CTA.
__device__ __forceinline__ void store_rank(uint32 address, float4 v, uint32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address),
               "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void store_rank(uint32 address, float v, uint32 barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];" ::"r"(address), "f"(v),
               "r"(barrier)
               : "memory");
}
