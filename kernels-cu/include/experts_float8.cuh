// Experts' weights in 8-bit floats, e4m3, as elem_t pairs.
//
// A code's exponent and mantissa, moved to elem_t's, are the number but for a power of two, subnormal or not: two instructions and a
// multiplication make two elements, exactly. Their scales, float32, are for sums: of a row, or of 128 columns of some rows.
#pragma once
#include "mxfp4.cuh"

#if !defined(MXFP4) || !defined(FLOAT8) || !defined(BLOCK_ROWS) || !defined(BLOCK_COLUMNS)
#error "MXFP4, FLOAT8, BLOCK_ROWS and BLOCK_COLUMNS come from src/backend/cuda/ops/experts-product.ts"
#endif

#if defined(DTYPE_BF16)
constexpr uint32 FLOAT8_MASK = 0x07f007f0u, FLOAT8_FACTOR = 0x7b807b80u;
constexpr int FLOAT8_LEFT = 4, FLOAT8_RIGHT = 4;
#else
constexpr uint32 FLOAT8_MASK = 0x3f803f80u, FLOAT8_FACTOR = 0x5c005c00u;
constexpr int FLOAT8_LEFT = 7, FLOAT8_RIGHT = 1;
#endif

// Bytes 0 and 2 of a word, and bytes 1 and 3.
__device__ __forceinline__ uint32 widen_even(uint32 word) {
  return scale_pair((word << 8 & SIGNS) | (word << FLOAT8_LEFT & FLOAT8_MASK), FLOAT8_FACTOR);
}
__device__ __forceinline__ uint32 widen_odd(uint32 word) {
  return scale_pair((word & SIGNS) | (word >> FLOAT8_RIGHT & FLOAT8_MASK), FLOAT8_FACTOR);
}
