// Where a row's cached tokens lie, for attention of one query token. Tokens are multiplied in parts of 16, and a tile of TILE
// tokens has PARTS of them. Of a lane, r is lane / 4 and c lane % 4.
#pragma once
#include "attention.cuh"

#if !defined(DECODE_TILE) || !defined(DECODE_SLICES)
#error "DECODE_TILE and DECODE_SLICES come from src/backend/cuda/ops/decode-tiles.ts"
#endif

constexpr int PART = 16, TILE = DECODE_TILE, PARTS = TILE / PART;
static_assert(PARTS * PART == TILE, "DECODE_TILE must be a multiple of 16: the tokens are the 16-wide side of the products");

// A warp has SLICE_DIMS dimensions of its tile's tokens: all, or those of the slice that it takes of a head too wide for its registers.
constexpr int SLICES = DECODE_SLICES, SLICE_DIMS = HEAD_DIM / SLICES;
static_assert(SLICES * SLICE_DIMS == HEAD_DIM && SLICE_DIMS % 32 == 0, "DECODE_SLICES must leave a multiple of 32 dimensions each");

// Of tokens r and r + 8 of each part, and heads 8h + 2c and the next.
using Scores = float[PARTS][HEAD_TILES][4];
// The same, as B fragments.
using Probabilities = uint32[PARTS][HEAD_TILES][2];

// A row's cached tokens of one KV head, as one lane reads them. Tokens past `last` are read as `last`: what lies there is
// never touched, and as their probability is 0 any finite value will do.
struct Context {
  PagedHead keys, values;
  const int* blocks;
  int last, lane_row, lane_column;

  __device__ bool has(int part) const { return part * PART <= last; }

  // The block of a whole part, to be fetched ahead; with blocks below a part's size each token looks up its own.
  __device__ int block_of(int part) const {
    return BLOCK_SIZE >= PART && has(part) ? __ldg(blocks + static_cast<uint32>(part * PART) / BLOCK_SIZE) : 0;
  }
  __device__ const cache_t* token(const PagedHead& head, int part, int block, int index) const {
    const uint32 first = part * PART, offset = min(index, last - part * PART);
    if constexpr (BLOCK_SIZE >= PART) return opaque(opaque(head.token(block, first)) + offset * HEAD_DIM);
    return opaque(head.token(__ldg(blocks + (first + offset) / BLOCK_SIZE), first + offset));
  }
};
