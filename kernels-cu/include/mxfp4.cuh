// Weights in MXFP4 as elem_t pairs: codes of e2m1 (sign, two bits of exponent, one of mantissa) and a power of two, e8m0, for each
// 32 columns.
//
// A code's three low bits, moved to where elem_t has the lowest bits of its exponent and the highest of its mantissa, are the number
// that they stand for but for a power of two, subnormal or not. So to widen is to move bits and to multiply by one power of two, in which
// the scale is; all of it is exact where elem_t can hold the result.
#pragma once
#include "types.cuh"

static_assert(sizeof(elem_t) == 2, "codes widen to bfloat16 or float16");

constexpr int MXFP4_GROUP = 32;
constexpr uint32 SIGNS = 0x80008000u;
#if defined(DTYPE_BF16)
constexpr uint32 MAGNITUDES = 0x01c001c0u;
constexpr int MAGNITUDE_SHIFT = 6;
#else
constexpr uint32 MAGNITUDES = 0x0e000e00u;
constexpr int MAGNITUDE_SHIFT = 9;
#endif

// The codes in nibble I of both halves of a word, I of 0 to 3, as two elements without their factor.
template <int I>
__device__ __forceinline__ uint32 widen_codes(uint32 word) {
  constexpr int SHIFT = MAGNITUDE_SHIFT - 4 * I;
  const uint32 signs = word << (12 - 4 * I) & SIGNS;
  return signs | ((SHIFT >= 0 ? word << (SHIFT >= 0 ? SHIFT : 0) : word >> (SHIFT < 0 ? -SHIFT : 0)) & MAGNITUDES);
}

// Twice the factor of a scale's code, of at most 128 (loading checks that).
__device__ __forceinline__ uint32 mxfp4_factor(uint32 scale) {
#if defined(DTYPE_BF16)
  // 2^(scale − 127) · 2^126.
  return (scale + 126) * (1u << 7 | 1u << 23);
#else
  // 2^(scale − 127) · 2^14; below 2^−14 a subnormal, below 2^−24 nothing.
  const uint32 bits = scale > 98 ? (scale - 98) << 10 : scale > 88 ? 1u << (scale - 89) : 0;
  return bits * 0x10001u;
#endif
}

// a · b of both halves. (There is no multiplication of bfloat16 before compute capability 9.0; −0 keeps zeros' signs.)
__device__ __forceinline__ uint32 scale_pair(uint32 a, uint32 b) {
  uint32 y;
#if defined(DTYPE_BF16)
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(SIGNS));
#else
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(SIGNS));
#endif
  return y;
}

// Bytes of two words as a selector's nibbles name them.
__device__ __forceinline__ uint32 select_bytes(uint32 a, uint32 b, uint32 selector) {
  uint32 y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
  return y;
}
// The low halves of two words, and their high halves.
__device__ __forceinline__ uint32 low_halves(uint32 a, uint32 b) { return select_bytes(a, b, 0x5410); }
__device__ __forceinline__ uint32 high_halves(uint32 a, uint32 b) { return select_bytes(a, b, 0x7632); }
