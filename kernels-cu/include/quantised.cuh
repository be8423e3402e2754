// Quantised weights as kernels read them: the order of codes in memory, and codes made floats in registers.
//
// Order. A matrix [N, K], N a multiple of 8 and K of BLOCK columns, is [N / 8 strips][K / BLOCK blocks][8 rows][64 bytes]. Lane
// (r, c) of a warp, r = lane / 4 and c = lane % 4, loads 16 bytes of row r, at byte 16c of its 64: so a warp's load is a strip's
// block, 512 bytes one after another, and what a lane gets is what it needs as mma's A (see mma.cuh). Of 8 bits, word i of the
// four has columns 16i + 2c, + 8, + 1 and + 9 in its bytes, lowest first. Of 4 bits, nibbles e and e + 4 of word i are columns
// 32i + 8e + 2c and the next. Scales of groups, and zero points, are [N / 8][K / g][8 rows]; of superblocks steps are
// [N / 8][K / 256][8 rows][STEP_BYTES] and units [N / 8][K / 256][8 rows][1 or 2]. What reorders is quantised_weights.cu.
#pragma once
#if defined(SCALES) && SCALES >= 4
#define SMALL_CODES
#endif
#include "integers.cuh"
#include "mma.cuh"

#if !defined(BITS) || !defined(FLOAT8) || !defined(SCALES) || !defined(ZEROS) || !defined(STRIP) || !defined(BLOCK_BYTES)
#error "BITS, FLOAT8, SCALES, ZEROS, STRIP and BLOCK_BYTES come from src/backend/cuda/ops/quantised-form.ts"
#endif
static_assert(!FLOAT8 || BITS == 8, "8-bit floats have 8 bits");

static_assert(STRIP == 8 && BLOCK_BYTES == 64, "a warp loads a strip's block, 16 bytes a lane");
constexpr int BLOCK = BLOCK_BYTES * 8 / BITS;

constexpr uint32 MINUS_ZEROS = 0x80008000u;

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
#else
constexpr float FLOAT8_FACTOR = 1;
__device__ __forceinline__ uint32 offset_of(int zero) { return integer_offset(zero); }
__device__ __forceinline__ void dequantise(uint32 (&pairs)[WORD_PAIRS], uint32 word, uint32 offset) {
  integer_pairs(pairs, word, offset);
}
#endif

// SCALES: one float32 for each row, for each block of 128 columns of some rows, or a float16 or bfloat16 for each row's group; or groups
// of superblocks, of which a signed byte times the superblock's unit is the scale, and another, where there are two, the minimum.
constexpr int ROW_FLOATS = 0, BLOCK_FLOATS = 1, GROUP_HALVES = 2, GROUP_BFLOATS = 3, STEPS = 4, STEPS_AND_MINIMA = 5;
constexpr bool GROUPED = SCALES == GROUP_HALVES || SCALES == GROUP_BFLOATS;
constexpr bool STEPPED = SCALES == STEPS || SCALES == STEPS_AND_MINIMA, MINIMA = SCALES == STEPS_AND_MINIMA;
constexpr int FACTORS = MINIMA ? 2 : 1, SUPERBLOCK = 256;
// The zero point where a weight has none of its own.
constexpr int USUAL_ZERO = MINIMA ? 0 : STEPPED ? 32 : MIDDLE;

__device__ __forceinline__ float group_scale(uint16 bits) {
  return half_scale<SCALES == GROUP_BFLOATS>(bits);
}

// What a group of a superblock has: an element is scale · code − minimum.
struct GroupFactors {
  float scale, minimum;
};
// A signed byte of four, times a float16. The byte, 128 more, is an offset from 2^23: conversions of integers are slow.
__device__ __forceinline__ float stepped(uint32 steps, int byte, uint32 unit) {
  const float step = __uint_as_float(__byte_perm(steps ^ 0x80808080u, 0x4b000000u, 0x7440 + byte)) - (8388608.0f + 128);
  return step * half_scale<false>(static_cast<uint16>(unit));
}
// Factors of the group whose bytes are those of `steps` from `byte` on, an even one with MINIMA.
__device__ __forceinline__ GroupFactors group_factors(uint32 steps, int byte, uint32 units) {
  return {stepped(steps, byte, units), MINIMA ? stepped(steps, byte + 1, units >> 16) : 0};
}
// The units of superblock `index`.
__device__ __forceinline__ uint32 load_units(const void* units, int64 index) {
  return MINIMA ? static_cast<const uint32*>(units)[index] : static_cast<const uint16*>(units)[index];
}

// Steps of COLUMNS columns of a row, loaded together.
template <int COLUMNS, int GROUP>
struct Steps {
  static constexpr int BYTES = COLUMNS / GROUP * FACTORS, WORDS = ceil_div(BYTES, 4);
  uint32 words[WORDS];

  __device__ __forceinline__ void load(const unsigned char* from) {
    if constexpr (BYTES == 16) {
      const uint4 all = load16(from);
      words[0] = all.x, words[1] = all.y, words[2] = all.z, words[3] = all.w;
    } else if constexpr (BYTES == 8) {
      const uint2 all = *reinterpret_cast<const uint2*>(from);
      words[0] = all.x, words[1] = all.y;
    } else {
      static_assert(BYTES == 4, "steps of a block are whole words");
      words[0] = *reinterpret_cast<const uint32*>(from);
    }
  }
  __device__ __forceinline__ GroupFactors factors(int group, uint32 units) const {
    return group_factors(words[group * FACTORS / 4], group * FACTORS % 4, units);
  }
  __device__ __forceinline__ uint32 seen() const {
    uint32 all = 0;
#pragma unroll
    for (int i = 0; i < WORDS; i++) all |= words[i];
    return all;
  }
};

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
