// Quantised weights as kernels read them: the order of codes in memory, and codes made floats in registers.
//
// Order. A matrix [N, K], N a multiple of 8 and K of BLOCK columns, is [N / 8 strips][K / BLOCK blocks][8 rows][64 bytes]. Lane
// (r, c) of a warp, r = lane / 4 and c = lane % 4, loads 16 bytes of row r, at byte 16c of its 64: so a warp's load is a strip's
// block, 512 bytes one after another, and what a lane gets is what it needs as mma's A (see mma.cuh). Of 8 bits, word i of the
// four has columns 16i + 2c, + 8, + 1 and + 9 in its bytes, lowest first. Of 4 bits, nibbles e and e + 4 of word i are columns
// 32i + 8e + 2c and the next. Scales of groups, and zero points, are [N / 8][K / g][8 rows]. What reorders is quantised_weights.cu.
#pragma once
#include "mma.cuh"

#if !defined(BITS) || !defined(FLOAT8) || !defined(SCALES) || !defined(ZEROS) || !defined(STRIP) || !defined(BLOCK_BYTES)
#error "BITS, FLOAT8, SCALES, ZEROS, STRIP and BLOCK_BYTES come from src/backend/cuda/ops/quantised-form.ts"
#endif
static_assert(BITS == 4 || BITS == 8, "codes have 4 or 8 bits");
static_assert(!FLOAT8 || BITS == 8, "8-bit floats have 8 bits");

static_assert(STRIP == 8 && BLOCK_BYTES == 64, "a warp loads a strip's block, 16 bytes a lane");
constexpr int BLOCK = BLOCK_BYTES * 8 / BITS;
// Pairs of neighbouring columns in a word: of 8 bits k = 2c of one 16-column step and k = 2c + 8; of 4 bits those of two steps.
constexpr int WORD_PAIRS = 16 / BITS;

#if defined(DTYPE_BF16)
constexpr uint32 ONES = 0x3f803f80u, CODE_MAGIC = 0x43004300u, MINUS_MAGIC = 0xc300c300u;
#else
constexpr uint32 ONES = 0x3c003c00u, CODE_MAGIC = 0x64006400u, MINUS_MAGIC = 0xe400e400u;
#endif

constexpr uint32 MINUS_ZEROS = 0x80008000u;

__device__ __forceinline__ uint32 fma2(uint32 a, uint32 b, uint32 c) {
  uint32 y;
#if defined(DTYPE_BF16)
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
#else
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
#endif
  return y;
}

// dequantise(pairs, word, offset) gives code − zero as elements, exactly; `offset` is offset_of(zero). 8-bit floats come
// multiplied by 1 / FLOAT8_FACTOR and know no offset.
#if FLOAT8
// An e4m3 code's exponent and mantissa as those of an element are the number times 2^−8 as float16, or 2^−120 as bfloat16, subnormal
// ones included. In float16 that is left to the scale; bfloat16's would be too small for sums, so they are multiplied back.
#if defined(DTYPE_BF16)
constexpr float FLOAT8_FACTOR = 1;
constexpr uint32 FLOAT8_MASK = 0x07f007f0u;
constexpr int LOW_LEFT = 4, HIGH_RIGHT = 4;
#else
constexpr float FLOAT8_FACTOR = 256;
constexpr uint32 FLOAT8_MASK = 0x3f803f80u;
constexpr int LOW_LEFT = 7, HIGH_RIGHT = 1;
#endif
__device__ __forceinline__ uint32 offset_of(int) { return 0; }
__device__ __forceinline__ void dequantise(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32) {
  constexpr uint32 SIGNS = MINUS_ZEROS;
  pairs[0] = ((word << 8) & SIGNS) | ((word << LOW_LEFT) & FLOAT8_MASK);
  pairs[1] = (word & SIGNS) | ((word >> HIGH_RIGHT) & FLOAT8_MASK);
#if defined(DTYPE_BF16)
  pairs[0] = fma2(pairs[0], 0x7b807b80u, SIGNS);
  pairs[1] = fma2(pairs[1], 0x7b807b80u, SIGNS);
#endif
}
#elif BITS == 4
// A code in the mantissa's lowest bits is an offset from 128 as bfloat16, from 1,024 as float16.
__device__ __forceinline__ uint32 offset_of(int zero) { return zero * 0x10001u + MINUS_MAGIC; }
__device__ __forceinline__ void dequantise(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
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
#elif defined(DTYPE_F16)
__device__ __forceinline__ uint32 offset_of(int zero) { return zero * 0x10001u + MINUS_MAGIC; }
__device__ __forceinline__ void dequantise(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
  pairs[0] = fma2(__byte_perm(word, CODE_MAGIC, 0x7250), ONES, offset);
  pairs[1] = fma2(__byte_perm(word, CODE_MAGIC, 0x7351), ONES, offset);
}
#else
// bfloat16 has one bit too few for 256 + code: by way of float32, where a code is an offset from 2^23.
__device__ __forceinline__ uint32 offset_of(int zero) { return 0xcb000000u | zero; }
__device__ __forceinline__ void dequantise(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
  float code[4];
#pragma unroll
  for (int i = 0; i < 4; i++)
    code[i] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + i)) + __uint_as_float(offset);
  pairs[0] = pack2(code[0], code[2]);
  pairs[1] = pack2(code[1], code[3]);
}
#endif
#if !FLOAT8
constexpr float FLOAT8_FACTOR = 1;
#endif

// The zero point where a weight has none of its own.
constexpr int MIDDLE = 1 << (BITS - 1);

// SCALES: one float32 for each row, for each block of 128 columns of some rows, or a float16 or bfloat16 for each row's group.
constexpr int ROW_FLOATS = 0, BLOCK_FLOATS = 1, GROUP_HALVES = 2, GROUP_BFLOATS = 3;
constexpr bool GROUPED = SCALES >= GROUP_HALVES;

__device__ __forceinline__ float group_scale(uint16 bits) {
  if (SCALES == GROUP_BFLOATS) return __uint_as_float(static_cast<uint32>(bits) << 16);
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

// Copies of 4 and 8 bytes to shared memory, and this lane's arrival at a barrier when all that it has begun are done.
__device__ __forceinline__ void copy_async4(uint32 target, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(target), "l"(source) : "memory");
}
__device__ __forceinline__ void copy_async8(uint32 target, const void* source) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(target), "l"(source) : "memory");
}
__device__ __forceinline__ void arrive_copied(uint32 barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
