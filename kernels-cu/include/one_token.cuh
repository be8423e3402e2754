// What both kernels of experts for one token share: how columns are divided, and x in shared memory.
#pragma once
#include "expert_pieces.cuh"

#if !defined(ONE_WARPS) || !defined(IN_FEATURES) || !defined(STAGES) || !defined(ONE_CTAS)
#error "ONE_WARPS, IN_FEATURES, STAGES and ONE_CTAS come from src/backend/cuda/ops/experts-one.ts"
#endif

constexpr int THREADS = ONE_WARPS * WARP;
// Outputs of a tile: rows of a fragment, whose two halves are what makes it.
constexpr int OUT_ROWS = 8;
// Pieces of a quad of lanes that a row has: those of the last may begin behind its columns. Lanes then load the row's first piece, and
// their x is zeros.
constexpr int QUADS = (IN_FEATURES + STEP - 1) / STEP;

// The first column of a lane's piece of a quad, of 0 to QUADS - 1.
__device__ __forceinline__ int piece_column(int quad, int lane) {
  const int column = quad * STEP + lane % 4 * PIECE;
  return IN_FEATURES % STEP == 0 || column < IN_FEATURES ? column : 0;
}

// x in shared memory, in the order of weights: all pieces' first words, then all second words, so that neighbouring pieces are on
// different banks.
struct StagedInput {
  uint4* words;
  int pieces;

  __device__ __forceinline__ InputPiece load(int piece) const {
    InputPiece y;
#pragma unroll
    for (int i = 0; i < LOADS; i++) y.words[i] = words[i * pieces + piece];
    return y;
  }
  // Elements 8 · i to 8 · i + 7, of whole pieces.
  __device__ __forceinline__ void store(int i, uint4 x) const { words[i % LOADS * pieces + i / LOADS] = in_weights_order(x); }
};
