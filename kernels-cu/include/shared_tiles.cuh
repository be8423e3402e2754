// Tiles of 16 cached tokens in shared memory, for attention that has no registers for them: copies from the paged cache, and the
// products of decode_tiles.cuh. A tile is keys, then values, [TILE, HEAD_DIM] each. Lanes: r = lane / 4, c = lane % 4.
#pragma once
#include "decode_tiles.cuh"

static_assert(PARTS == 1, "a tile of shared memory is multiplied at once");

// 16-byte chunks of a token.
constexpr int CHUNKS = HEAD_DIM / CACHE_VEC;
constexpr int ROW_BYTES = HEAD_DIM * static_cast<int>(sizeof(cache_t));
constexpr int HALF_TILE_BYTES = TILE * ROW_BYTES;
constexpr int TILE_BYTES = 2 * HALF_TILE_BYTES;

// The chunks of a token are permuted by XOR with this, so that what lanes read at a time lies on different banks: keys of
// tokens 2i and 2i + 1, values of tokens i, i + 2, i + 4 and i + 6.
__device__ __forceinline__ constexpr int swizzle(int token) {
  return CHUNKS % 8 == 0 ? (token / 2 % 4 * 2) ^ (token % 2 * 4) : CHUNKS % 4 == 0 ? token / 2 % 4 : token / 2 % 2;
}
// Byte offset of a chunk of a token in a half tile.
__device__ __forceinline__ constexpr uint32 chunk_offset(int token, int chunk) {
  return token * ROW_BYTES + (chunk ^ swizzle(token)) * VECTOR_BYTES;
}

// A row's tokens in the cache of one KV head.
struct CachedHead {
  const int* blocks;  // the row's block table
  int head, tokens;

  // The block of a whole tile, to be fetched ahead; with blocks below a tile's size each token looks up its own.
  __device__ int block_of(int tile) const {
    return BLOCK_SIZE >= TILE && tile * TILE < tokens ? __ldg(blocks + static_cast<uint32>(tile) * TILE / BLOCK_SIZE) : 0;
  }
};

// Starts to copy a tile to shared memory: its cached tokens, and zeros for those past them. A warp's lanes call it together.
__device__ __forceinline__ void copy_tile(uint32 target, const cache_t* keys, const cache_t* values, int num_heads,
                                          const CachedHead& cached, int tile, int tile_block, int lane) {
  static_assert(TILE * CHUNKS % WARP == 0, "the lanes copy as many chunks each");
  const int count = cached.tokens - tile * TILE;
  const auto offset_of = [&](int block, int token) {
    return (static_cast<int64>(block) * num_heads + cached.head) * (BLOCK_SIZE * HEAD_DIM) + token % BLOCK_SIZE * HEAD_DIM;
  };
  const int64 tile_offset = offset_of(tile_block, tile * TILE);
#pragma unroll
  for (int j = 0; j < TILE * CHUNKS / WARP; j++) {
    const int token = (j * WARP + lane) / CHUNKS, chunk = (j * WARP + lane) % CHUNKS;
    const bool valid = token < count;
    int64 offset = tile_offset + (j * WARP + lane) * CACHE_VEC;
    if constexpr (BLOCK_SIZE < TILE) {
      const int position = tile * TILE + token;
      offset = offset_of(valid ? __ldg(cached.blocks + position / BLOCK_SIZE) : 0, position) + chunk * CACHE_VEC;
    }
    cp_async16(target + chunk_offset(token, chunk), keys + offset, valid);
    cp_async16(target + HALF_TILE_BYTES + chunk_offset(token, chunk), values + offset, valid);
  }
}

// A token that is not cached takes its place in a tile: `key` and `value` [HEAD_DIM] in shared memory, 16-byte aligned. A warp's lanes call it together; those that have copied the tile must have waited.
__device__ __forceinline__ void insert_token(uint32 tile, int index, const cache_t* key, const cache_t* value, int lane) {
  for (int chunk = lane; chunk < CHUNKS; chunk += WARP) {
    store16_shared(tile + chunk_offset(index, chunk), load16(key + chunk * CACHE_VEC));
    store16_shared(tile + HALF_TILE_BYTES + chunk_offset(index, chunk), load16(value + chunk * CACHE_VEC));
  }
  __syncwarp();
}

// scores[heads, tokens of the tile] as fragments: tokens r and r + 8, heads 8h + 2c and the next.
#if defined(CACHE_FLOAT8)
__device__ __forceinline__ void attend_keys(float (&scores)[HEAD_TILES][4], uint32 tile,
                                            const uint4 (&query)[HEAD_TILES][QUERY_LOADS], int lane) {
  const int r = lane / 4, c = lane % 4;
  uint32 low[KEY_WORDS], high[KEY_WORDS];
#pragma unroll
  for (int i = 0; i < KEY_LOADS; i++) {
    const uint32 address = tile + chunk_offset(r, i * 4 + c);
    set_words(low, i * 4, load16_shared(address)), set_words(high, i * 4, load16_shared(address + 8 * ROW_BYTES));
  }
  if constexpr (HEAD_DIM % 64 != 0) {
    const uint32 address = tile + chunk_offset(r, KEY_LOADS * 4 + c / 2) + c % 2 * 8;
    set_words(low, KEY_LOADS * 4, load8_shared(address)), set_words(high, KEY_LOADS * 4, load8_shared(address + 8 * ROW_BYTES));
  }
  attend_words(scores, query, [&](int w) { return make_uint2(low[w], high[w]); });
}
#else
__device__ __forceinline__ void attend_keys(float (&scores)[HEAD_TILES][4], uint32 tile,
                                            const uint4 (&query)[HEAD_TILES][QUERY_LOADS], int lane) {
  const int r = lane / 4, c = lane % 4;
  float even[HEAD_TILES][4] = {}, odd[HEAD_TILES][4] = {};
#pragma unroll
  for (int i = 0; i < QUERY_LOADS; i++) {
    const uint4 low = load16_shared(tile + chunk_offset(r, i * 4 + c)), high = load16_shared(tile + chunk_offset(r, i * 4 + c) + 8 * ROW_BYTES);
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      const uint4 q = query[h][i];
      mma_m16n8k16(even[h], low.x, high.x, low.y, high.y, q.x, q.y);
      mma_m16n8k16(odd[h], low.z, high.z, low.w, high.w, q.z, q.w);
    }
  }
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int i = 0; i < 4; i++) scores[h][i] = even[h][i] + odd[h][i];
}
#endif

__device__ __forceinline__ void attend_values(Softmax& state, uint32 tile, const uint32 (&probabilities)[HEAD_TILES][2],
                                              int lane) {
  const int r = lane / 4, c = lane % 4;
  const auto multiply = [&](int word, uint32 x0, uint32 x1, uint32 x8, uint32 x9) {
    multiply_values(state.output, word, x0, x1, x8, x9, probabilities);
  };
  // Tokens 2c, 2c + 1, 2c + 8 and 2c + 9.
  const auto address_of = [&](int t, int chunk) {
    return tile + HALF_TILE_BYTES + chunk_offset(c * 2 + t % 2, chunk) + t / 2 * 8 * ROW_BYTES;
  };
#pragma unroll
  for (int i = 0; i < VALUE_LOADS; i++) {
    uint4 x[4];
#pragma unroll
    for (int t = 0; t < 4; t++) x[t] = load16_shared(address_of(t, i * 8 + r));
    multiply(i * 4, x[0].x, x[1].x, x[2].x, x[3].x);
    multiply(i * 4 + 1, x[0].y, x[1].y, x[2].y, x[3].y);
    multiply(i * 4 + 2, x[0].z, x[1].z, x[2].z, x[3].z);
    multiply(i * 4 + 3, x[0].w, x[1].w, x[2].w, x[3].w);
  }
  // What is left of a token, half a chunk a lane and a quarter.
  constexpr int LANE_CHUNKS = HEAD_DIM % (8 * CACHE_VEC) / CACHE_VEC;
  if constexpr (LANE_CHUNKS >= 4) {
    uint2 x[4];
#pragma unroll
    for (int t = 0; t < 4; t++) x[t] = load8_shared(address_of(t, VALUE_LOADS * 8 + r / 2) + r % 2 * 8);
    multiply(VALUE_LOADS * 4, x[0].x, x[1].x, x[2].x, x[3].x);
    multiply(VALUE_LOADS * 4 + 1, x[0].y, x[1].y, x[2].y, x[3].y);
  }
  if constexpr (LANE_CHUNKS % 4 != 0) {
    uint32 x[4];
#pragma unroll
    for (int t = 0; t < 4; t++) x[t] = load4_shared(address_of(t, CHUNKS - 2 + r / 4) + r % 4 * 4);
    multiply(HEAD_DIM / 32 - 1, x[0], x[1], x[2], x[3]);
  }
}
