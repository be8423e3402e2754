// A token's choice among experts by the router's logits.
#pragma once
#include "types.cuh"

#if !defined(EXPERTS) || !defined(MAX_EXPERTS) || !defined(MAX_PER_TOKEN)
#error "EXPERTS, MAX_EXPERTS and MAX_PER_TOKEN come from src/backend/cuda/ops/experts-route.ts"
#endif
static_assert(EXPERTS <= MAX_EXPERTS, "counts of all experts are kept in shared memory");
static_assert(MAX_PER_TOKEN <= WARP, "each lane keeps one of a token's experts");

constexpr int PER_LANE = (EXPERTS + WARP - 1) / WARP;

// Numbers whose order as unsigned integers is that of the floats.
__device__ __forceinline__ uint32 order_of(float x) {
  const uint32 bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint32 warp_max(uint32 x) {
  uint32 y;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
  return y;
}
__device__ __forceinline__ uint32 warp_min(uint32 x) {
  uint32 y;
  asm volatile("redux.sync.min.u32 %0, %1, 0xffffffff;" : "=r"(y) : "r"(x));
  return y;
}

// A token's choice: lane j < k has its j-th expert and that one's weight, times its scale unless `scales` is null. All lanes of a
// warp call.
struct Choice {
  int32 expert;
  float weight;
};
__device__ __forceinline__ Choice choose(const float* logits, const float* __restrict__ bias, const float* __restrict__ scales,
                                         int k, int softmax_over_all) {
  const int lane = threadIdx.x % WARP;
  float values[PER_LANE] = {};
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) {
    const int expert = i * WARP + lane;
    if (expert >= EXPERTS) continue;
    values[i] = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(logits) + expert));
    if (bias != nullptr) values[i] += bias[expert];
  }
  uint32 taken = 0;
  int32 mine = 0;
  float logit = 0, most = 0;
  for (int j = 0; j < k; j++) {
    // The lane's best of what is left, the first of equals.
    uint32 key = 0, at = 0xffffffffu;
    float value = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      const uint32 other = order_of(values[i]);
      const bool is_left = i * WARP + lane < EXPERTS && !(taken >> i & 1);
      if (is_left && (at == 0xffffffffu || other > key)) key = other, at = i * WARP + lane, value = values[i];
    }
    // Lanes that have nothing left have key 0, and no place.
    const uint32 best = warp_max(key);
    const uint32 expert = warp_min(key == best ? at : 0xffffffffu);
    if (at == expert) taken |= 1u << expert / WARP;
    const float winner = __shfl_sync(FULL_MASK, value, expert % WARP);
    if (j == 0) most = winner;
    if (lane == j) mine = expert, logit = winner;
  }
  float total = 0;
  if (softmax_over_all) {
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
      if (i * WARP + lane < EXPERTS) total += expf(values[i] - most);
  } else if (lane < k) {
    total = expf(logit - most);
  }
  total = warp_sum(total);
  return {mine, expf(logit - most) / total * (scales == nullptr ? 1.0f : scales[mine])};
}
