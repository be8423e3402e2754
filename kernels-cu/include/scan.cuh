// Sums over the threads of a block before one's own.
#pragma once
#include "types.cuh"

// The sum of `value` over the threads before this one, and over all. All threads call.
struct Sums {
  int before, total;
};
__device__ __forceinline__ Sums scan_block(int value) {
  __shared__ int32 warp_totals[WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  int sum = value;
  for (int offset = 1; offset < WARP; offset *= 2) {
    const int below = __shfl_up_sync(FULL_MASK, sum, offset);
    if (lane >= offset) sum += below;
  }
  __syncthreads();
  if (lane == WARP - 1) warp_totals[warp] = sum;
  __syncthreads();
  int total = 0;
  for (int i = 0; i < warps; i++) {
    if (i < warp) sum += warp_totals[i];
    total += warp_totals[i];
  }
  return {sum - value, total};
}
