// Rows of experts' weights as fragments of mma.m16n8k16, for kernels in which weights are the 16-wide side and come straight from
// memory to registers. The order of k is free, so that what a 16-byte load of a row holds, a piece, lands directly in fragments: 8
// elements, or codes of 16 columns in 8-bit floats, or of 32 columns in MXFP4.
#pragma once
#include "experts_float8.cuh"
#include "mma.cuh"
#include "mxfp4.cuh"

// Columns of a piece, and of the pieces of a quad's four lanes.
constexpr int PIECE = MXFP4 ? 32 : FLOAT8 ? 16 : 8;
constexpr int STEP = 4 * PIECE;
static_assert(IN_FEATURES % PIECE == 0, "a lane loads whole pieces of a row");
static_assert(!FLOAT8 || BLOCK_COLUMNS >= IN_FEATURES || BLOCK_COLUMNS % STEP == 0, "a step has one scale");
// 16-byte loads of x for a piece.
constexpr int LOADS = PIECE / 8;
// Scales of a row, or of BLOCK_ROWS of them.
constexpr int ROW_SCALES = MXFP4 ? IN_FEATURES / MXFP4_GROUP : (IN_FEATURES + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
constexpr int SCALE_BYTES = FLOAT8 ? 4 : 1;

// A piece of rows r and r + 8 of a fragment, with its scales: codes of MXFP4's, or floats.
struct WeightPiece {
  uint4 words[2];
  uint32 scales[2];
};

// The scale of a piece, of the row whose scales begin at `of_row`. `step` is the first column of the quad's step: that is whose scale
// the quad's products in 8-bit floats have, as each lane has some of all of them.
__device__ __forceinline__ uint32 piece_scale(const unsigned char* of_row, int column, int step) {
  if (MXFP4) return of_row[column / MXFP4_GROUP];
  if (FLOAT8) return reinterpret_cast<const uint32*>(of_row)[step / BLOCK_COLUMNS];
  return 0;
}

// Rows r and r + 8 of a fragment, from a column on that is a multiple of PIECE.
struct WeightRows {
  const unsigned char* words[2];
  const unsigned char* scales[2];
  int column;

  __device__ __forceinline__ void set(int half, const unsigned char* matrices, const unsigned char* all_scales, int64 row, int first) {
    words[half] = matrices + (row * IN_FEATURES + first) / PIECE * 16;
    scales[half] = all_scales + row / BLOCK_ROWS * ROW_SCALES * SCALE_BYTES;
    column = first;
  }
  // The piece that is so many columns further on; `step`: see piece_scale.
  __device__ __forceinline__ WeightPiece load(int columns, int step) const {
    WeightPiece piece;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      piece.words[half] = load16_stream(words[half] + columns / PIECE * 16);
      piece.scales[half] = piece_scale(scales[half], column + columns, step);
    }
    return piece;
  }
};

// 8 elements of x in the order in which weights have them: with MXFP4 codes i and i + 4 of a word make a pair, of 8 bits i and i + 2.
__device__ __forceinline__ uint4 in_weights_order(uint4 y) {
  if (MXFP4) return make_uint4(low_halves(y.x, y.z), high_halves(y.x, y.z), low_halves(y.y, y.w), high_halves(y.y, y.w));
  if (FLOAT8) return make_uint4(low_halves(y.x, y.y), high_halves(y.x, y.y), low_halves(y.z, y.w), high_halves(y.z, y.w));
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

// sum[0] + sum[1] += the fragment's rows · x.
__device__ __forceinline__ void multiply_piece(float (&sum)[2][4], const WeightPiece& weights, const InputPiece& x) {
  // Of 8-bit floats a piece's products are scaled once they are summed.
  float unscaled[2][4] = {};
  float(&to)[2][4] = FLOAT8 ? unscaled : sum;
#pragma unroll
  for (int i = 0; i < LOADS; i++) {
    uint4 rows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const uint4 all = weights.words[half];
      if constexpr (MXFP4) {
        const uint32 word = i == 0 ? all.x : i == 1 ? all.y : i == 2 ? all.z : all.w;
        const uint32 factor = mxfp4_factor(weights.scales[half]);
        rows[half] = make_uint4(scale_pair(widen_codes<0>(word), factor), scale_pair(widen_codes<1>(word), factor),
                                scale_pair(widen_codes<2>(word), factor), scale_pair(widen_codes<3>(word), factor));
      } else if constexpr (FLOAT8) {
        const uint32 low = i == 0 ? all.x : all.z, high = i == 0 ? all.y : all.w;
        rows[half] = make_uint4(widen_even(low), widen_odd(low), widen_even(high), widen_odd(high));
      } else {
        rows[half] = all;
      }
    }
    const uint4 y = x.words[i];
    mma_m16n8k16(to[0], rows[0].x, rows[1].x, rows[0].y, rows[1].y, y.x, y.y);
    mma_m16n8k16(to[1], rows[0].z, rows[1].z, rows[0].w, rows[1].w, y.z, y.w);
  }
  if constexpr (FLOAT8) {
#pragma unroll
    for (int i = 0; i < 4; i++) sum[0][i] += (unscaled[0][i] + unscaled[1][i]) * __uint_as_float(weights.scales[i / 2]);
  }
}
