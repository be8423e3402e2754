// Tensor maps, and the copies of Hopper's copy engine that are described by them.
#pragma once
#include "types.cuh"

// A CUtensorMap, made by cuTensorMapEncodeTiled on the host.
struct alignas(64) TensorMap {
  uint64 opaque[16];
};
// The copy engine sees a map in global memory as the host wrote it.
__device__ __forceinline__ void tensor_map_fence(const TensorMap* map) {
  asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(map) : "memory");
}
__device__ __forceinline__ void tensor_map_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

#define COPY_BOX(dimensions, multicast, coordinates, to)                                                                        \
  asm volatile("cp.async.bulk.tensor." dimensions "d.shared::cluster.global.mbarrier::complete_tx::bytes" multicast              \
               " [%0], [%1, {" coordinates "}], [%2]" to ";" ::"r"(target),                                                     \
               "l"(map), "r"(barrier), "r"(column), "r"(last), "r"(0), "h"(ranks)                                                \
               : "memory")

// A box of a map of this many dimensions, to this CTA's shared memory; its bytes count at the barrier. Its first column and its
// first index of the last dimension are given; in those between it is whole.
template <int DIMENSIONS>
__device__ __forceinline__ void copy_box(uint32 target, const TensorMap* map, uint32 barrier, int column, int last) {
  static_assert(DIMENSIONS >= 2 && DIMENSIONS <= 4, "no kernel has boxes of other dimensions for itself");
  constexpr uint16 ranks = 0;
  if constexpr (DIMENSIONS == 2)
    COPY_BOX("2", "", "%3, %4", "");
  else if constexpr (DIMENSIONS == 3)
    COPY_BOX("3", "", "%3, %5, %4", "");
  else
    COPY_BOX("4", "", "%3, %5, %5, %4", "");
}

// The same to one place in each CTA of `ranks`, a bit a rank; the bytes count at the same barrier of each.
template <int DIMENSIONS>
__device__ __forceinline__ void copy_box_multicast(uint32 target, const TensorMap* map, uint32 barrier, int column, int last,
                                                   uint16 ranks) {
  static_assert(DIMENSIONS == 2 || DIMENSIONS == 4 || DIMENSIONS == 5, "no kernel has boxes of other dimensions for a cluster");
  if constexpr (DIMENSIONS == 2)
    COPY_BOX("2", ".multicast::cluster", "%3, %4", ", %6");
  else if constexpr (DIMENSIONS == 4)
    COPY_BOX("4", ".multicast::cluster", "%3, %5, %5, %4", ", %6");
  else
    COPY_BOX("5", ".multicast::cluster", "%3, %5, %5, %5, %4", ", %6");
}

// Of a map of four dimensions: a box is whole in the first two, and its first index of the third is given.
__device__ __forceinline__ void copy_columns(uint32 target, const TensorMap* map, uint32 barrier, int column, int last) {
  constexpr uint16 ranks = 0;
  COPY_BOX("4", "", "%5, %5, %3, %4", "");
}

// Of a map of strips (quantised.cuh): 64 bytes, 8 rows and pairs of strips are whole; the box's block of columns and its first
// pair are given.
__device__ __forceinline__ void copy_strips(uint32 target, const TensorMap* map, uint32 barrier, int column, int last) {
  constexpr uint16 ranks = 0;
  COPY_BOX("5", "", "%5, %5, %5, %3, %4", "");
}
__device__ __forceinline__ void copy_strips_multicast(uint32 target, const TensorMap* map, uint32 barrier, int column, int last,
                                                      uint16 ranks) {
  COPY_BOX("5", ".multicast::cluster", "%5, %5, %5, %3, %4", ", %6");
}
#undef COPY_BOX
