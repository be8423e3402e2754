// Rows of experts' weights as fragments of mma.m16n8k16, for kernels in which weights are the 16-wide side and come straight from
// memory to registers. The order of k is free, so that what a 16-byte load of a row holds, a piece, lands directly in fragments: 8
// elements, or codes of 16 columns in 8 bits, or of 32 columns in 4 bits.
#pragma once
#include "experts_integers.cuh"
#include "mma.cuh"

// Columns of a piece, and of the pieces of a quad's four lanes.
constexpr int PIECE = PIECE_COLUMNS;
constexpr int STEP = 4 * PIECE;
static_assert(IN_FEATURES % PIECE == 0, "a lane loads whole pieces of a row");
static_assert(!FLOAT8 || BLOCK_COLUMNS >= IN_FEATURES || BLOCK_COLUMNS % STEP == 0, "a step has one scale");
static_assert(!INTEGERS || BLOCK_COLUMNS >= IN_FEATURES || BLOCK_COLUMNS % PIECE == 0, "a piece has one scale");
// Scales are for sums of a step where it has one; else integers are multiplied by theirs, and rounded.
constexpr bool SCALES_SUMS = FLOAT8 || (INTEGERS && (BLOCK_COLUMNS >= IN_FEATURES || BLOCK_COLUMNS % STEP == 0));
// 16-byte loads of x for a piece.
constexpr int LOADS = PIECE / 8;
// Scales of a row, or of BLOCK_ROWS of them.
constexpr int ROW_SCALES = MXFP4 ? IN_FEATURES / MXFP4_GROUP : (IN_FEATURES + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
constexpr int SCALE_BYTES = FLOAT8 ? 4 : INTEGERS ? 2 : 1;

// A piece of rows r and r + 8 of a fragment, with its scales: codes of MXFP4's, floats, or group_word.
struct WeightPiece {
  uint4 words[2];
  uint32 scales[2];
};

// All experts' scales, and the zero points of integers that have some.
struct AllScales {
  const unsigned char *scales, *zeros;
};

// Those of a row.
struct RowScales {
  const unsigned char *scales, *zeros;

  __device__ __forceinline__ void set(const AllScales& all, int64 row) {
    scales = all.scales + row / BLOCK_ROWS * ROW_SCALES * SCALE_BYTES;
    zeros = all.zeros + row * ROW_SCALES;
  }
  // The scale of the piece at a column. `step` is the first column of the quad's step: where scales are for sums, the quad's products
  // have that one's, as each lane has some of all of them.
  __device__ __forceinline__ uint32 at(int column, int step) const {
    if (MXFP4) return scales[column / MXFP4_GROUP];
    if (FLOAT8) return reinterpret_cast<const uint32*>(scales)[step / BLOCK_COLUMNS];
    if (!INTEGERS) return 0;
    const int group = (SCALES_SUMS ? step : column) / BLOCK_COLUMNS;
    return group_word(reinterpret_cast<const uint16*>(scales)[group], ZEROS ? zeros[group] : MIDDLE);
  }
};

// Rows r and r + 8 of a fragment, from a column on that is a multiple of PIECE.
struct WeightRows {
  const unsigned char* words[2];
  RowScales scales[2];
  int column;

  __device__ __forceinline__ void set(int half, const unsigned char* matrices, const AllScales& all, int64 row, int first) {
    words[half] = matrices + (row * IN_FEATURES + first) / PIECE * 16;
    scales[half].set(all, row);
    column = first;
  }
  // The piece that is so many columns further on; `step`: see RowScales.
  __device__ __forceinline__ WeightPiece load(int columns, int step) const {
    WeightPiece piece;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      piece.words[half] = load16_stream(words[half] + columns / PIECE * 16);
      piece.scales[half] = scales[half].at(column + columns, step);
    }
    return piece;
  }
};

// 8 elements of x in the order in which weights have them: of 4 bits codes i and i + 4 of a word make a pair, of 8 bits i and i + 2.
__device__ __forceinline__ uint4 in_weights_order(uint4 y) {
  if (CODES4) return make_uint4(low_halves(y.x, y.z), high_halves(y.x, y.z), low_halves(y.y, y.w), high_halves(y.y, y.w));
  if (CODES8) return make_uint4(low_halves(y.x, y.y), high_halves(y.x, y.y), low_halves(y.z, y.w), high_halves(y.z, y.w));
  return y;
}

// x of a piece, in that order once `order` has been called.
struct InputPiece {
  uint4 words[LOADS];

  __device__ __forceinline__ void order() {
#pragma unroll
    for (int i = 0; i < LOADS; i++) words[i] = in_weights_order(words[i]);
  }
};

// Elements of a piece's columns 8 · i to 8 · i + 7, in that order; without their scale where it is for sums.
__device__ __forceinline__ uint4 widen_piece(const uint4& all, uint32 scale, int i) {
  const uint32 word = i == 0 ? all.x : i == 1 ? all.y : i == 2 ? all.z : all.w;
  const uint32 low = i == 0 ? all.x : all.z, high = i == 0 ? all.y : all.w;
  if constexpr (MXFP4) {
    const uint32 factor = mxfp4_factor(scale);
    return make_uint4(scale_pair(widen_codes<0>(word), factor), scale_pair(widen_codes<1>(word), factor),
                      scale_pair(widen_codes<2>(word), factor), scale_pair(widen_codes<3>(word), factor));
  } else if constexpr (FLOAT8) {
    return make_uint4(widen_even(low), widen_odd(low), widen_even(high), widen_odd(high));
  } else if constexpr (INTEGERS) {
    uint32 pairs[4];
    if constexpr (INTEGERS == 4) {
      integer_pairs(reinterpret_cast<uint32(&)[WORD_PAIRS]>(pairs), word, group_offset(scale));
    } else {
      integer_pairs(reinterpret_cast<uint32(&)[WORD_PAIRS]>(pairs[0]), low, group_offset(scale));
      integer_pairs(reinterpret_cast<uint32(&)[WORD_PAIRS]>(pairs[2]), high, group_offset(scale));
    }
    if constexpr (!SCALES_SUMS) {
      const float factor = group_scale(scale);
#pragma unroll
      for (int e = 0; e < 4; e++) pairs[e] = times(pairs[e], factor);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  } else {
    return all;
  }
}

// sum[0] + sum[1] += the fragment's rows · x.
__device__ __forceinline__ void multiply_piece(float (&sum)[2][4], const WeightPiece& weights, const InputPiece& x) {
  float unscaled[2][4] = {};
  float(&to)[2][4] = SCALES_SUMS ? unscaled : sum;
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    uint4 rows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) rows[half] = widen_piece(weights.words[half], weights.scales[half], i);
    const uint4 y = x.words[i];
    mma_m16n8k16(to[0], rows[0].x, rows[1].x, rows[0].y, rows[1].y, y.x, y.y);
    mma_m16n8k16(to[1], rows[0].z, rows[1].z, rows[0].w, rows[1].w, y.z, y.w);
  }
  if constexpr (SCALES_SUMS) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint32 scale = weights.scales[half];
      const float factor = FLOAT8 ? __uint_as_float(scale) : group_scale(scale);
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; i++) sum[0][i] += (unscaled[0][i] + unscaled[1][i]) * factor;
    }
  }
}
