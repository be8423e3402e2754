// A warp's registers for 16 cached tokens of float8_e4m3, and the products with them. See decode_tiles.cuh.
//
// A word of four codes of a key is what a lane has of one product: the two pairs that are 8 apart in a fragment are neighbours
// in memory. Codes of values are paired by tokens before they are widened, so that a word of each of two tokens needs two permutations.
#pragma once
#include "decode_context.cuh"

// Dimensions of a lane's first load of a token.
constexpr int KEY_LANE_DIMS = 16, VALUE_LANE_DIMS = 16;

// Words that a lane holds of one token of keys: a quad covers 64 dimensions with 16-byte loads, a tail of 32 with 8-byte loads.
constexpr int KEY_WORDS = SLICE_DIMS / 16, KEY_LOADS = SLICE_DIMS / 64;
// 16-byte pieces of a query that a lane needs, each for two words of keys.
constexpr int QUERY_LOADS = SLICE_DIMS / 32;
__device__ __forceinline__ int query_dim(int load, int lane_column) {
  return load < KEY_LOADS * 2 ? load / 2 * 64 + lane_column * 16 + load % 2 * 8 : KEY_LOADS * 64 + lane_column * 8;
}

// Words of one token of values: 8 lanes cover 128 dimensions with 16-byte loads, tails of 64 and 32 with 8 and 4 bytes. Word i
// begins with dimension word_dim(i); it has pairs 2i and 2i + 1, which begin with value_dim.
constexpr int VALUE_WORDS = SLICE_DIMS / 32, VALUE_LOADS = SLICE_DIMS / 128;
constexpr int VALUE_PAIRS = SLICE_DIMS / 16;
constexpr int TAIL_AT = VALUE_LOADS * 128, LAST_TAIL_AT = SLICE_DIMS / 64 * 64;
__device__ __forceinline__ int word_dim(int word, int lane_row) {
  if (word < VALUE_LOADS * 4) return word / 4 * 128 + lane_row * 16 + word % 4 * 4;
  return word < SLICE_DIMS / 64 * 2 ? TAIL_AT + lane_row * 8 + word % 2 * 4 : LAST_TAIL_AT + lane_row * 4;
}
__device__ __forceinline__ int value_dim(int pair, int lane_row) { return word_dim(pair / 2, lane_row) + pair % 2 * 2; }

// A part of keys: words of tokens r and r + 8.
struct KeyPart {
  uint32 low[KEY_WORDS], high[KEY_WORDS];
};
// A part of values: words of tokens 2c, 2c + 1, 2c + 8 and 2c + 9.
struct ValuePart {
  uint32 words[4][VALUE_WORDS];
};

template <int N>
__device__ __forceinline__ void set_words(uint32 (&words)[N], int first, uint4 v) {
  words[first] = v.x, words[first + 1] = v.y, words[first + 2] = v.z, words[first + 3] = v.w;
}
template <int N>
__device__ __forceinline__ void set_words(uint32 (&words)[N], int first, uint2 v) {
  words[first] = v.x, words[first + 1] = v.y;
}

struct KeyTile {
  KeyPart parts[PARTS];
};
struct ValueTile {
  ValuePart parts[PARTS];
};

// The block of each part; see Context.
struct TileBlocks {
  int of[PARTS];
};
__device__ __forceinline__ TileBlocks blocks_of_tile(const Context& context, int tile) {
  TileBlocks blocks;
#pragma unroll
  for (int i = 0; i < PARTS; i++) blocks.of[i] = context.block_of(tile * PARTS + i);
  return blocks;
}

__device__ __forceinline__ void load_part(KeyPart& part, const Context& context, int index, int block) {
  const cache_t* low = context.token(context.keys, index, block, context.lane_row);
  const cache_t* high = context.token(context.keys, index, block, context.lane_row + 8);
#pragma unroll
  for (int i = 0; i < KEY_LOADS; i++) {
    set_words(part.low, i * 4, load16_stream(low + i * 64));
    set_words(part.high, i * 4, load16_stream(high + i * 64));
  }
  if constexpr (SLICE_DIMS % 64 != 0) {
    const int tail = KEY_LOADS * 64 - context.lane_column * 8;
    set_words(part.low, KEY_LOADS * 4, load8_stream(low + tail));
    set_words(part.high, KEY_LOADS * 4, load8_stream(high + tail));
  }
}
__device__ __forceinline__ void load_part(ValuePart& part, const Context& context, int index, int block) {
#pragma unroll
  for (int t = 0; t < 4; t++) {
    const cache_t* source = context.token(context.values, index, block, context.lane_column * 2 + t % 2 + t / 2 * 8);
#pragma unroll
    for (int i = 0; i < VALUE_LOADS; i++) set_words(part.words[t], i * 4, load16_stream(source + i * 128));
    if constexpr (SLICE_DIMS % 128 >= 64)
      set_words(part.words[t], VALUE_LOADS * 4, load8_stream(source + TAIL_AT - context.lane_row * 8));
    if constexpr (SLICE_DIMS % 64 != 0)
      part.words[t][VALUE_WORDS - 1] = load4_stream(source + LAST_TAIL_AT - context.lane_row * 12);
  }
}
// Zeros where no token of a part is cached.
template <typename Tile>
__device__ __forceinline__ void load_tile(Tile& tile, const Context& context, int index, const TileBlocks& blocks) {
#pragma unroll
  for (int i = 0; i < PARTS; i++) {
    tile.parts[i] = {};
    if (context.has(index * PARTS + i)) load_part(tile.parts[i], context, index * PARTS + i, blocks.of[i]);
  }
}

// The row's own token takes its place in a tile: `key` and `value` [SLICE_DIMS], 16-byte aligned.
__device__ __forceinline__ void insert_token(KeyTile& keys, int index, const cache_t* key, int lane) {
  if (index % 8 != lane / 4) return;
#pragma unroll
  for (int w = 0; w < KEY_WORDS; w++) {
    const uint32 word = *reinterpret_cast<const uint32*>(key + query_dim(w / 2, lane % 4) + w % 2 * 4);
#pragma unroll
    for (int i = 0; i < PARTS; i++) {
      if (index / 8 == i * 2) keys.parts[i].low[w] = word;
      if (index / 8 == i * 2 + 1) keys.parts[i].high[w] = word;
    }
  }
}
__device__ __forceinline__ void insert_token(ValueTile& values, int index, const cache_t* value, int lane) {
#pragma unroll
  for (int t = 0; t < PARTS * 4; t++) {
    if (index != t / 4 * PART + lane % 4 * 2 + t % 2 + t / 2 % 2 * 8) continue;
#pragma unroll
    for (int w = 0; w < VALUE_WORDS; w++)
      values.parts[t / 4].words[t % 4][w] = *reinterpret_cast<const uint32*>(value + word_dim(w, lane / 4));
  }
}

// sums[heads][turn] += the words of tokens r and r + 8 times two pairs of each query.
__device__ __forceinline__ void multiply_keys(float (&sums)[HEAD_TILES][2][4], int turn, uint32 low, uint32 high,
                                              const uint2 (&query)[HEAD_TILES]) {
  uint32 a0, a1, a2, a3;
  unpack_float8x4(low, a0, a2);
  unpack_float8x4(high, a1, a3);
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) mma_m16n8k16_f16(sums[h][turn], a0, a1, a2, a3, query[h].x, query[h].y);
}
// The same of all words of a part; `words_of(word)` gives those of tokens r and r + 8.
template <typename WordsOf>
__device__ __forceinline__ void attend_words(float (&scores)[HEAD_TILES][4], const uint4 (&query)[HEAD_TILES][QUERY_LOADS],
                                             const WordsOf& words_of) {
  float sums[HEAD_TILES][2][4] = {};
#pragma unroll
  for (int w = 0; w < KEY_WORDS; w++) {
    uint2 pairs[HEAD_TILES];
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      const uint4 q = query[h][w / 2];
      pairs[h] = w % 2 == 0 ? make_uint2(q.x, q.y) : make_uint2(q.z, q.w);
    }
    const uint2 words = words_of(w);
    multiply_keys(sums, w % 2, words.x, words.y, pairs);
  }
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int i = 0; i < 4; i++) scores[h][i] = sums[h][0][i] + sums[h][1][i];
}
__device__ __forceinline__ void attend_keys(Scores& scores, const KeyTile& keys,
                                            const uint4 (&query)[HEAD_TILES][QUERY_LOADS]) {
#pragma unroll
  for (int i = 0; i < PARTS; i++)
    attend_words(scores[i], query, [&](int w) { return make_uint2(keys.parts[i].low[w], keys.parts[i].high[w]); });
}

// output[pairs 2·word and 2·word + 1] += the words of tokens 2c, 2c + 1, 2c + 8 and 2c + 9 times their probabilities.
__device__ __forceinline__ void multiply_values(float (&output)[HEAD_TILES][VALUE_PAIRS][4], int word, uint32 x0, uint32 x1,
                                                uint32 x8, uint32 x9, const uint32 (&probabilities)[HEAD_TILES][2]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32 select = half == 0 ? 0x5140 : 0x7362;
    uint32 a0, a1, a2, a3;
    unpack_float8x4(__byte_perm(x0, x1, select), a0, a1);
    unpack_float8x4(__byte_perm(x8, x9, select), a2, a3);
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++)
      mma_m16n8k16_f16(output[h][word * 2 + half], a0, a1, a2, a3, probabilities[h][0], probabilities[h][1]);
  }
}
__device__ __forceinline__ void attend_values(float (&output)[HEAD_TILES][VALUE_PAIRS][4], const ValueTile& values,
                                              const Probabilities& probabilities) {
#pragma unroll
  for (int i = 0; i < PARTS; i++)
#pragma unroll
    for (int w = 0; w < VALUE_WORDS; w++) {
      const uint32(&words)[4][VALUE_WORDS] = values.parts[i].words;
      multiply_values(output, w, words[0][w], words[1][w], words[2][w], words[3][w], probabilities[i]);
    }
}
