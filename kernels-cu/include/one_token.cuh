// What both kernels of experts for one token share: how warps divide the columns, and the sums of their parts.
#pragma once
#include "expert_pieces.cuh"

#if !defined(ONE_WARPS) || !defined(IN_FEATURES) || !defined(FRAGMENTS) || !defined(STAGES)
#error "ONE_WARPS, IN_FEATURES, FRAGMENTS and STAGES come from src/backend/cuda/ops/experts-one.ts"
#endif

constexpr int THREADS = ONE_WARPS * WARP;
constexpr int STEPS = (IN_FEATURES + ONE_WARPS * STEP - 1) / (ONE_WARPS * STEP);
constexpr int ROWS = FRAGMENTS * 16;

// True if a lane's columns of a step are columns of the matrix.
__device__ __forceinline__ bool is_inside(int column, int step) {
  return (step + 1) * ONE_WARPS * STEP <= IN_FEATURES || column + step * ONE_WARPS * STEP < IN_FEATURES;
}

// Column 0 of the warps' sums, all that there is.
struct Sums {
  float rows[ONE_WARPS][ROWS];

  __device__ __forceinline__ void store(int warp, int lane, const float (&d)[FRAGMENTS][2][4]) {
    if (lane % 4 != 0) return;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) {
      rows[warp][f * 16 + lane / 4] = d[f][0][0] + d[f][1][0];
      rows[warp][f * 16 + 8 + lane / 4] = d[f][0][2] + d[f][1][2];
    }
  }
  __device__ __forceinline__ float total(int row) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < ONE_WARPS; w++) sum += rows[w][row];
    return sum;
  }
};
