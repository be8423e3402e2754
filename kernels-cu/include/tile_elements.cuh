// A warp's registers for 16 cached tokens of elem_t, and the products with them. See decode_tiles.cuh.
#pragma once
#include "decode_context.cuh"

static_assert(PARTS == 1, "registers hold 16 tokens");

// Dimensions of a lane's first load of a token.
constexpr int KEY_LANE_DIMS = 8, VALUE_LANE_DIMS = 8;
// 16-byte loads a lane needs for one token of keys, and for a query: a quad covers 32 dimensions at a time.
constexpr int QUERY_LOADS = SLICE_DIMS / 32;
__device__ __forceinline__ int query_dim(int load, int lane_column) { return load * 32 + lane_column * 8; }
// 32-bit words a lane holds of one token of values: 8 lanes cover 64 dimensions with 16-byte loads, a tail of 32 with
// 8-byte loads. Pair i is the dimensions value_dim(i), value_dim(i) + 1, which are word i.
constexpr int VALUE_PAIRS = SLICE_DIMS / 16;
constexpr int VALUE_LOADS = SLICE_DIMS / 64;
__device__ __forceinline__ int value_dim(int pair, int lane_row) {
  return pair < VALUE_LOADS * 4 ? pair / 4 * 64 + lane_row * 8 + pair % 4 * 2
                                : VALUE_LOADS * 64 + lane_row * 4 + pair % 4 * 2;
}

// Tile of keys as A fragments: tokens r and r + 8, dimensions 32i + 8c .. 8c + 7.
struct KeyTile {
  uint4 low[QUERY_LOADS], high[QUERY_LOADS];
};
// Tile of values: words of tokens 2c, 2c + 1, 2c + 8 and 2c + 9.
struct ValueTile {
  uint32 words[4][VALUE_PAIRS];
};

// The tile's block; see Context.
using TileBlocks = int;
__device__ __forceinline__ TileBlocks blocks_of_tile(const Context& context, int tile) { return context.block_of(tile); }

// Zeros where no token of the tile is cached.
__device__ __forceinline__ void load_tile(KeyTile& tile, const Context& context, int index, TileBlocks block) {
  if (!context.has(index)) {
    tile = {};
    return;
  }
  const cache_t* low = context.token(context.keys, index, block, context.lane_row);
  const cache_t* high = context.token(context.keys, index, block, context.lane_row + 8);
#pragma unroll
  for (int i = 0; i < QUERY_LOADS; i++) {
    tile.low[i] = load16_stream(low + i * 32);
    tile.high[i] = load16_stream(high + i * 32);
  }
}
__device__ __forceinline__ void load_tile(ValueTile& tile, const Context& context, int index, TileBlocks block) {
  if (!context.has(index)) {
    tile = {};
    return;
  }
#pragma unroll
  for (int t = 0; t < 4; t++) {
    const cache_t* source = context.token(context.values, index, block, context.lane_column * 2 + t % 2 + t / 2 * 8);
    uint32(&words)[VALUE_PAIRS] = tile.words[t];
#pragma unroll
    for (int i = 0; i < VALUE_LOADS; i++) {
      const uint4 v = load16_stream(source + i * 64);
      words[i * 4] = v.x, words[i * 4 + 1] = v.y, words[i * 4 + 2] = v.z, words[i * 4 + 3] = v.w;
    }
    if constexpr (SLICE_DIMS % 64 != 0) {
      const uint2 v = load8_stream(source + VALUE_LOADS * 64 - context.lane_row * 4);
      words[VALUE_LOADS * 4] = v.x, words[VALUE_LOADS * 4 + 1] = v.y;
    }
  }
}

// The row's own token takes its place in a tile: `key` and `value` [SLICE_DIMS], 16-byte aligned.
__device__ __forceinline__ void insert_token(KeyTile& keys, int index, const cache_t* key, int lane) {
  if (index % 8 != lane / 4) return;
#pragma unroll
  for (int i = 0; i < QUERY_LOADS; i++) {
    const uint4 v = load16(key + i * 32 + lane % 4 * 8);
    if (index < 8)
      keys.low[i] = v;
    else
      keys.high[i] = v;
  }
}
__device__ __forceinline__ void insert_token(ValueTile& values, int index, const cache_t* value, int lane) {
#pragma unroll
  for (int t = 0; t < 4; t++) {
    if (index != lane % 4 * 2 + t % 2 + t / 2 * 8) continue;
#pragma unroll
    for (int w = 0; w < VALUE_PAIRS; w++)
      values.words[t][w] = *reinterpret_cast<const uint32*>(value + value_dim(w, lane / 4));
  }
}

__device__ __forceinline__ void attend_keys(Scores& scores, const KeyTile& keys,
                                            const uint4 (&query)[HEAD_TILES][QUERY_LOADS]) {
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int i = 0; i < QUERY_LOADS; i++) {
      const uint4 low = keys.low[i], high = keys.high[i], q = query[h][i];
      mma_m16n8k16(even, low.x, high.x, low.y, high.y, q.x, q.y);
      mma_m16n8k16(odd, low.z, high.z, low.w, high.w, q.z, q.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) scores[0][h][i] = even[i] + odd[i];
  }
}

// output[pair] += the words of tokens 2c, 2c + 1, 2c + 8 and 2c + 9 times their probabilities.
__device__ __forceinline__ void multiply_values(float (&output)[HEAD_TILES][VALUE_PAIRS][4], int word, uint32 x0, uint32 x1,
                                                uint32 x8, uint32 x9, const uint32 (&probabilities)[HEAD_TILES][2]) {
  const uint32 a0 = __byte_perm(x0, x1, 0x5410), a1 = __byte_perm(x0, x1, 0x7632);
  const uint32 a2 = __byte_perm(x8, x9, 0x5410), a3 = __byte_perm(x8, x9, 0x7632);
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
    mma_m16n8k16(output[h][word], a0, a1, a2, a3, probabilities[h][0], probabilities[h][1]);
}
__device__ __forceinline__ void attend_values(float (&output)[HEAD_TILES][VALUE_PAIRS][4], const ValueTile& values,
                                              const Probabilities& probabilities) {
#pragma unroll
  for (int w = 0; w < VALUE_PAIRS; w++)
    multiply_values(output, w, values.words[0][w], values.words[1][w], values.words[2][w], values.words[3][w],
                    probabilities[0]);
}
