// The type of cached keys and values, and the one that attention multiplies them in.
//
// CACHE_FLOAT8 selects float8_e4m3 for cache_t, with a scale for keys and one for values: x is stored as x / scale. Every such value
// is one of float16, too, so attention then multiplies in float16, whatever elem_t is; the scale of keys is part of that of the
// scores, and results are multiplied by that of values. Without it cache_t is elem_t, and nothing has a scale.
#pragma once
#include "float8.cuh"

#if defined(CACHE_FLOAT8)

using cache_t = float8_t;

// Two factors of attention's products in a register, the first in the low half.
__device__ __forceinline__ uint32 pack_factors(float first, float second) {
  uint32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
// The same of a query, which may be larger than float16 holds.
__device__ __forceinline__ uint32 pack_query(float first, float second) {
  constexpr float MOST = 65504;
  return pack_factors(fminf(fmaxf(first, -MOST), MOST), fminf(fmaxf(second, -MOST), MOST));
}
// Of two elements.
__device__ __forceinline__ uint32 pack_query(uint32 elements) {
#if defined(DTYPE_F16)
  return elements;
#else
  float first, second;
  unpack2(elements, first, second);
  return pack_query(first, second);
#endif
}

#else

using cache_t = elem_t;
#if !defined(DTYPE_F32)
__device__ __forceinline__ uint32 pack_factors(float first, float second) { return pack2(first, second); }
#endif

#endif

// What a sum of cached values, weighted with probabilities of this sum, is multiplied by.
__device__ __forceinline__ float mean_factor(float sum, float value_scale) {
#if defined(CACHE_FLOAT8)
  return value_scale / sum;
#else
  return 1 / sum;
#endif
}

// Elements of a 16-byte access to the cache.
constexpr int CACHE_VEC = VECTOR_BYTES / static_cast<int>(sizeof(cache_t));
