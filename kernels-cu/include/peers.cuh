// Memory that the ranks of a model write into each other's GPUs, and words that arrive by themselves.
//
// A rank stores into a place of its own in every other rank's memory, and each rank polls its own memory alone: what is polled
// never crosses the link. No flag follows the data: a word says itself that it is there, either by not being 0 (reduce_add) or
// by the tag beside it (gather_words), so a message takes one way over the link and no fence.
//
// Rounds. Every rank launches the same kernels of a kind in the same order, each on one stream, and a round is one of those
// launches. Two buffers take turns: round n uses buffer n mod 2. That is enough, whatever the sizes, by this order: a rank stores
// for round n + 2 after its round n + 1, which ends after it has received from all ranks in round n + 1; they send that after
// their wait for the kernels before, thus after their round n, in which they have read (and cleared) the buffer. So nothing is
// overwritten that is still to be read, and nothing stored is cleared unread. Kernels of a kind must send something in each
// round, which is why the host leaves out empty ones.
// The number of a round is in device memory, as captured graphs launch with the same arguments every time: a word for each of
// PEER_BLOCKS blocks, all of which every launch counts on, however few blocks it has itself. So a message may have as many as it
// is worth, and ranks need not have the same number.
//
// All blocks of a launch must be resident on all GPUs at once, as they wait for one another: PEER_BLOCKS_PER_SM a multiprocessor
// at most. Kernels after it start early only when all its blocks have started.
#pragma once
#include "types.cuh"

#if !defined(RANKS) || !defined(PEER_THREADS) || !defined(MAX_RANKS) || !defined(PEER_TIMEOUT_NS)
#error "RANKS, PEER_THREADS, MAX_RANKS and PEER_TIMEOUT_NS come from src/backend/cuda/ops/peer-exchange.ts"
#endif
#if !defined(PEER_BLOCKS) || !defined(PEER_BLOCKS_PER_SM)
#error "PEER_BLOCKS and PEER_BLOCKS_PER_SM come from src/backend/cuda/peer-memory.ts"
#endif
static_assert(RANKS >= 2 && RANKS <= MAX_RANKS, "RANKS must be 2 to MAX_RANKS");
static_assert(PEER_THREADS % WARP == 0 && PEER_THREADS <= 1024, "PEER_THREADS must be whole warps of one block");

// Polls between two looks at the clock and at whether others have given up: about 10 ms.
constexpr uint32 POLLS_PER_LOOK = 1 << 14;

// The base of every rank's memory, as this GPU reaches it; of this rank itself, its own.
struct PeerTable {
  unsigned char* memory[MAX_RANKS];
};

// Relaxed, of the whole system: between GPUs each 4- or 8-byte word of a vector is stored and found whole, and no more is
// relied on.
__device__ __forceinline__ void store16_system(void* p, uint4 v) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}
__device__ __forceinline__ uint4 load16_system(const void* p) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_system(uint64* p, uint64 v) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ uint64 load_system(const uint64* p) {
  uint64 v;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}

// What was written before it is found by who reads it with load_acquire_system.
__device__ __forceinline__ void store_release_system(uint32* p, uint32 v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
__device__ __forceinline__ uint32 load_acquire_system(const uint32* p) {
  uint32 v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ uint64 nanoseconds() {
  uint64 now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
  return now;
}

// Ends the wait for a rank that does not come: by a trap, since nothing after this kernel could be right.
class Patience {
 public:
  // `given_up` is host memory that is not 0 once the wait is pointless.
  __device__ __forceinline__ explicit Patience(const uint32* given_up) : given_up_(given_up) {}

  // Called after each poll that has found nothing.
  __device__ __forceinline__ void spend() {
    if (++polls_ % POLLS_PER_LOOK != 0) return;
    const uint64 now = nanoseconds();
    if (since_ == 0) since_ = now;
    uint32 given_up;
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(given_up) : "l"(given_up_) : "memory");
    if (given_up != 0 || now - since_ > PEER_TIMEOUT_NS) __trap();
  }

 private:
  const uint32* given_up_;
  uint64 since_ = 0;
  uint32 polls_ = 0;
};

// The round of this launch, by the block's count in `rounds`. Called after the wait for the kernels before.
__device__ __forceinline__ uint32 this_round(const uint32* rounds) { return load_coherent(rounds + blockIdx.x); }

// The next launch is another round, for blocks that this one has not, too: block b counts for b, b + gridDim.x and so on. All
// threads must call, when they have read this one's number.
__device__ __forceinline__ void end_round(uint32* rounds, uint32 round) {
  static_assert(PEER_BLOCKS <= PEER_THREADS, "the threads of one block count for all blocks there may be");
  __syncthreads();
  const uint32 block = blockIdx.x + threadIdx.x * gridDim.x;
  if (block < PEER_BLOCKS) rounds[block] = round + 1;
}

// Items that a warp takes together, spread over the blocks: those of a small message over as many multiprocessors as it has
// warps. first_item() is this thread's, item_step() the distance to its next.
__device__ __forceinline__ int first_item() {
  const int warp = threadIdx.x / WARP * gridDim.x + blockIdx.x;
  return warp * WARP + threadIdx.x % WARP;
}
__device__ __forceinline__ int item_step() { return gridDim.x * PEER_THREADS; }

// The nth of the other ranks, n from 0: each rank begins with its neighbour, so that no rank is sent to by all at once.
__device__ __forceinline__ int other_rank(int rank, int n) { return (rank + 1 + n) % RANKS; }
