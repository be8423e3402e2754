// A warp's attention of one query token over tiles of cached tokens: loads, products, running softmax. A tile has one part of 16
// tokens, or several.
//
// Both products run on tensor cores with the tokens or dimensions of the cache as the 16-wide side and the g ≤ 8 query heads
// as the 8-wide side (Sᵀ = K·Qᵀ, Oᵀ = Vᵀ·Pᵀ): about 8 instructions a token whatever g is, where FMA code needs 24 or more.
// The order of summed indices is free, so 16-byte global loads land directly in fragments. Of a lane, r is lane / 4 and c
// lane % 4. How cached elements lie in registers depends on their type: tile_elements.cuh, tile_float8.cuh.
#pragma once
#include "decode_context.cuh"
#if defined(CACHE_FLOAT8)
#include "tile_float8.cuh"
#else
#include "tile_elements.cuh"
#endif

// Running softmax of a warp. Lane (r, c) holds heads 8h + 2c and 8h + 2c + 1: their maximum (of log2 scores), its own
// tokens' part of their sum, and in accumulators [pair] the pair of dimensions of value_dim for each of the two heads.
struct Softmax {
  float max[HEAD_TILES][2], sum[HEAD_TILES][2];
  float output[HEAD_TILES][VALUE_PAIRS][4];
};

__device__ __forceinline__ void clear(Softmax& state) {
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    state.max[h][0] = state.max[h][1] = -infinity();
    state.sum[h][0] = state.sum[h][1] = 0;
#pragma unroll
    for (int w = 0; w < VALUE_PAIRS; w++)
#pragma unroll
      for (int i = 0; i < 4; i++) state.output[h][w][i] = 0;
  }
}

// Calls take(head, (maximum, sum), pair of the slice's dimensions, its outputs) for all of the lane's results, which are not yet
// divided by the sum. A warp's lanes call it together.
template <typename Take>
__device__ __forceinline__ void each_result(const Softmax& state, int lane, const Take& take) {
  const int r = lane / 4, c = lane % 4;
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = state.sum[h][i];
#pragma unroll
      for (int offset = 4; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
      const int head = h * 8 + c * 2 + i;
      if (head >= GROUP_SIZE) continue;
#pragma unroll
      for (int w = 0; w < VALUE_PAIRS; w++)
        take(head, make_float2(state.max[h][i], sum), value_dim(w, r) / 2,
             make_float2(state.output[h][w][i], state.output[h][w][i + 2]));
    }
}
// Leaves the warp's results for the other warps.
__device__ __forceinline__ void share_results(const Softmax& state, float2 (&stats)[GROUP_SIZE],
                                              float2 (&outputs)[GROUP_SIZE][SLICE_DIMS / 2], int lane) {
  each_result(state, lane, [&](int head, float2 stat, int pair, float2 output) {
    outputs[head][pair] = output;
    if (pair == 0) stats[head] = stat;
  });
}

// Turns a tile's scores into its probabilities, as B fragments, and rescales what came before. `low`: the position of token r;
// is_visible says of a position whether the query sees it.
template <typename IsVisible>
__device__ __forceinline__ void update_softmax(Probabilities& probabilities, Softmax& state, const Scores& scores, int low,
                                               const IsVisible& is_visible, float scale_log2, float cap_log2 = 0) {
  bool visible[PARTS][2];
#pragma unroll
  for (int part = 0; part < PARTS; part++)
    visible[part][0] = is_visible(low + part * 16), visible[part][1] = is_visible(low + part * 16 + 8);
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    float p[PARTS][4], factor[2];
#pragma unroll
    for (int part = 0; part < PARTS; part++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        p[part][i] = visible[part][i / 2] ? log2_score(scores[part][h][i], scale_log2, cap_log2) : -infinity();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float max = fmaxf(p[0][i], p[0][i + 2]);
#pragma unroll
      for (int part = 1; part < PARTS; part++) max = fmaxf(max, fmaxf(p[part][i], p[part][i + 2]));
#pragma unroll
      for (int offset = 4; offset < WARP; offset *= 2) max = fmaxf(max, __shfl_xor_sync(FULL_MASK, max, offset));
      max = fmaxf(max, state.max[h][i]);
      factor[i] = exp2_approx(state.max[h][i] - max);
      state.max[h][i] = max;
      float sum = 0;
#pragma unroll
      for (int part = 0; part < PARTS; part++) {
        p[part][i] = exp2_approx(p[part][i] - max), p[part][i + 2] = exp2_approx(p[part][i + 2] - max);
        sum = part == 0 ? p[part][i] + p[part][i + 2] : sum + (p[part][i] + p[part][i + 2]);
      }
      state.sum[h][i] = state.sum[h][i] * factor[i] + sum;
    }
#pragma unroll
    for (int w = 0; w < VALUE_PAIRS; w++)
#pragma unroll
      for (int i = 0; i < 4; i++) state.output[h][w][i] *= factor[i % 2];
#pragma unroll
    for (int part = 0; part < PARTS; part++) {
      probabilities[part][h][0] = transpose_8x8(pack_factors(p[part][0], p[part][1]));
      probabilities[part][h][1] = transpose_8x8(pack_factors(p[part][2], p[part][3]));
    }
  }
}

// Softmax-weighted pair of dimensions of one head, not yet divided by the sum.
struct Partial {
  float max = -infinity(), sum = 0;
  float2 output = {0, 0};

  // Adds parts given by their (maximum, sum) and output. The first part ever added must have a finite maximum; a part
  // of maximum −∞ counts for nothing.
  template <int COUNT>
  __device__ void add(const float2 (&stats)[COUNT], const float2 (&outputs)[COUNT]) {
    float new_max = max;
#pragma unroll
    for (int i = 0; i < COUNT; i++) new_max = fmaxf(new_max, stats[i].x);
    const float factor = exp2_approx(max - new_max);
    max = new_max, sum *= factor, output.x *= factor, output.y *= factor;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const float weight = exp2_approx(stats[i].x - max);
      sum += weight * stats[i].y, output.x += weight * outputs[i].x, output.y += weight * outputs[i].y;
    }
  }

  // value_scale: that of cached values, if they have any.
  __device__ uint32 result(float value_scale) const {
    float2 mean = {__fdividef(output.x, sum), __fdividef(output.y, sum)};
#if defined(CACHE_FLOAT8)
    mean.x *= value_scale, mean.y *= value_scale;
#endif
    return pack2(mean.x, mean.y);
  }
};
