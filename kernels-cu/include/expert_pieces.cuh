// Rows of experts' weights as fragments of mma.m16n8k16, for kernels in which weights are the 16-wide side and come straight from
// memory to registers. The order of k is free, so that what a 16-byte load of a row holds, a piece, lands directly in fragments: 8
// elements, or with MXFP4 the codes of 32 columns.
#pragma once
#include "mma.cuh"
#include "mxfp4.cuh"

#if !defined(MXFP4)
#error "MXFP4 comes from src/backend/cuda/ops/experts-few.ts"
#endif

// Columns of a piece, and of the pieces of a quad's four lanes.
constexpr int PIECE = MXFP4 ? 32 : 8;
constexpr int STEP = 4 * PIECE;
// 16-byte loads of x for a piece.
constexpr int LOADS = PIECE / 8;

// A piece of rows r and r + 8 of a fragment, with its scale.
struct WeightPiece {
  uint4 words[2];
  uint32 scales[2];
};

// Where a row's pieces are: `at` is the index in the matrix of the row's first element that is wanted.
struct WeightRows {
  const unsigned char* words[2];
  const unsigned char* scales[2];

  __device__ __forceinline__ void set(int half, const unsigned char* matrices, const unsigned char* all_scales, int64 at) {
    words[half] = matrices + at / PIECE * 16;
    scales[half] = all_scales + at / PIECE;
  }
  // The piece that is so many columns, a multiple of PIECE, further on.
  __device__ __forceinline__ WeightPiece load(int64 columns) const {
    WeightPiece piece;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      piece.words[half] = load16_stream(words[half] + columns / PIECE * 16);
      piece.scales[half] = MXFP4 ? scales[half][columns / PIECE] : 0;
    }
    return piece;
  }
};

// x of a piece, in the order in which weights have it: with MXFP4 codes i and i + 4 of a word make a pair.
struct InputPiece {
  uint4 words[LOADS];

  __device__ __forceinline__ void order() {
    if constexpr (MXFP4) {
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        const uint4 y = words[i];
        words[i] = make_uint4(low_halves(y.x, y.z), high_halves(y.x, y.z), low_halves(y.y, y.w), high_halves(y.y, y.w));
      }
    }
  }
};

// sum[0] + sum[1] += the fragment's rows · x.
__device__ __forceinline__ void multiply_piece(float (&sum)[2][4], const WeightPiece& weights, const InputPiece& x) {
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
      } else {
        rows[half] = all;
      }
    }
    const uint4 y = x.words[i];
    mma_m16n8k16(sum[0], rows[0].x, rows[1].x, rows[0].y, rows[1].y, y.x, y.y);
    mma_m16n8k16(sum[1], rows[0].z, rows[1].z, rows[0].w, rows[1].w, y.z, y.w);
  }
}
