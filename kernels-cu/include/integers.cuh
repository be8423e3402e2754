// Unsigned integers of 4 or 8 bits, four or eight a word, less their zero point, as elem_t pairs.
//
// integer_pairs(pairs, word, offset) gives code − zero, exactly; `offset` is integer_offset(zero). Of 4 bits pair e has codes e and e + 4 of
// the word, of 8 bits codes e and e + 2. SMALL_CODES says that codes of 8 bits, and zero points, are below 64.
#pragma once
#include "types.cuh"

#if !defined(BITS)
#error "BITS comes from src/backend/cuda/ops/quantised-form.ts or experts-product.ts"
#endif
static_assert(BITS == 4 || BITS == 8, "codes have 4 or 8 bits");

constexpr int WORD_PAIRS = 16 / BITS;
// The zero point where a weight has none of its own.
constexpr int MIDDLE = 1 << (BITS - 1);

#if defined(DTYPE_BF16)
constexpr uint32 ONES = 0x3f803f80u, CODE_MAGIC = 0x43004300u, MINUS_MAGIC = 0xc300c300u;
#else
constexpr uint32 ONES = 0x3c003c00u, CODE_MAGIC = 0x64006400u, MINUS_MAGIC = 0xe400e400u;
#endif

__device__ __forceinline__ uint32 fma2(uint32 a, uint32 b, uint32 c) {
  uint32 y;
#if defined(DTYPE_BF16)
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
#else
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
#endif
  return y;
}

#if BITS == 4
// A code in the mantissa's lowest bits is an offset from 128 as bfloat16, from 1,024 as float16.
__device__ __forceinline__ uint32 integer_offset(int zero) { return zero * 0x10001u + MINUS_MAGIC; }
__device__ __forceinline__ void integer_pairs(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
  // A constant that the compiler does not know is in a register: one that it knows it would put there again for each use.
  uint32 mask;
  asm("mov.b32 %0, 0x000f000f;" : "=r"(mask));
#pragma unroll
  for (int e = 0; e < 4; e++) {
    uint32 code;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(code) : "r"(word >> 4 * e), "r"(mask), "n"(CODE_MAGIC));
    pairs[e] = fma2(code, ONES, offset);
  }
}
#elif defined(DTYPE_F16) || defined(SMALL_CODES)
__device__ __forceinline__ uint32 integer_offset(int zero) { return zero * 0x10001u + MINUS_MAGIC; }
__device__ __forceinline__ void integer_pairs(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
  pairs[0] = fma2(__byte_perm(word, CODE_MAGIC, 0x7250), ONES, offset);
  pairs[1] = fma2(__byte_perm(word, CODE_MAGIC, 0x7351), ONES, offset);
}
#else
// bfloat16 has one bit too few for 256 + code: by way of float32, where a code is an offset from 2^23.
__device__ __forceinline__ uint32 integer_offset(int zero) { return 0xcb000000u | zero; }
__device__ __forceinline__ void integer_pairs(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
  float code[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    code[i] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i)) + __uint_as_float(offset);
  pairs[0] = pack2(code[0], code[2]);
  pairs[1] = pack2(code[1], code[3]);
}
#endif

// A scale, a bfloat16 or a float16.
template <bool BFLOAT>
__device__ __forceinline__ float half_scale(uint16 bits) {
  if (BFLOAT) return __uint_as_float(static_cast<uint32>(bits) << 16);
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}
