// Experts' weights in integers of 4 or 8 bits, with a 16-bit scale and a zero point for each BLOCK_COLUMNS of a row.
#pragma once
#include "experts_float8.cuh"

#if !defined(INTEGERS) || !defined(ZEROS) || !defined(BFLOAT_SCALES)
#error "INTEGERS, ZEROS and BFLOAT_SCALES come from src/backend/cuda/ops/experts-product.ts"
#endif
static_assert(!INTEGERS || BLOCK_ROWS == 1, "each row has scales of its own");
#if INTEGERS
#define BITS INTEGERS
#include "integers.cuh"
#else
// What no other form has, so that kernels need not ask the preprocessor.
constexpr int MIDDLE = 0, WORD_PAIRS = 4;
__device__ __forceinline__ uint32 integer_offset(int) { return 0; }
__device__ __forceinline__ void integer_pairs(uint32 (&)[WORD_PAIRS], uint32, uint32) {}
template <bool BFLOAT>
__device__ __forceinline__ float half_scale(uint16) {
  return 0;
}
#endif

// Forms by their bits: 16-byte pieces of a row have codes of 32 columns or of 16, or 8 elements.
constexpr bool CODES4 = MXFP4 || INTEGERS == 4, CODES8 = FLOAT8 || INTEGERS == 8;
constexpr int PIECE_COLUMNS = CODES4 ? 32 : CODES8 ? 16 : 8;

// What belongs to a group of integers, in one word.
__device__ __forceinline__ uint32 group_word(uint16 scale, uint32 zero) { return scale | zero << 16; }
__device__ __forceinline__ float group_scale(uint32 group) { return half_scale<BFLOAT_SCALES>(static_cast<uint16>(group)); }
__device__ __forceinline__ uint32 group_offset(uint32 group) { return integer_offset(group >> 16); }
// Both elements of a pair times a float, rounded once.
__device__ __forceinline__ uint32 times(uint32 pair, float factor) {
  float first, second;
  unpack2(pair, first, second);
  return pack2(first * factor, second * factor);
}
