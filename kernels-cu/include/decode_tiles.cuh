// A warp's attention of one query token over tiles of 16 cached tokens: loads, products, running softmax.
//
// Both products run on tensor cores with the tokens or dimensions of the cache as the 16-wide side and the g ≤ 8 query heads
// as the 8-wide side (Sᵀ = K·Qᵀ, Oᵀ = Vᵀ·Pᵀ): about 8 instructions a token whatever g is, where FMA code needs 24 or more.
// The order of summed indices is free, so 16-byte global loads land directly in fragments. Of a lane, r is lane / 4 and c
// lane % 4.
#pragma once
#include "attention.cuh"

#if !defined(DECODE_TILE)
#error "DECODE_TILE comes from src/backend/cuda/ops/decode-attention.ts"
#endif

constexpr int TILE = DECODE_TILE;
static_assert(TILE == 16, "DECODE_TILE must be 16: the tokens are the 16-wide side of the products");
constexpr int HEAD_TILES = ceil_div(GROUP_SIZE, 8);
// 16-byte loads a lane needs for one token of keys: a quad covers 32 dimensions at a time.
constexpr int KEY_LOADS = HEAD_DIM / 32;
// 32-bit words a lane holds of one token of values: 8 lanes cover 64 dimensions with 16-byte loads, a tail of 32 with
// 8-byte loads. Word i is the pair of dimensions value_dim(i), value_dim(i) + 1.
constexpr int VALUE_WORDS = HEAD_DIM / 16;
constexpr int VALUE_LOADS = HEAD_DIM / 64;
__device__ __forceinline__ int value_dim(int word, int lane_row) {
  return word < VALUE_LOADS * 4 ? word / 4 * 64 + lane_row * 8 + word % 4 * 2
                                : VALUE_LOADS * 64 + lane_row * 4 + word % 4 * 2;
}

__device__ __forceinline__ uint2 load8_stream(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

// Tile of keys as A fragments: tokens r and r + 8, dimensions 32i + 8c .. 8c + 7.
struct KeyTile {
  uint4 low[KEY_LOADS], high[KEY_LOADS];
};
// Tile of values: words of tokens 2c, 2c + 1, 2c + 8 and 2c + 9.
struct ValueTile {
  uint32 words[4][VALUE_WORDS];
};

// A row's cached tokens of one KV head, as one lane reads them. Tokens past `last` are read as `last`: what lies there is
// never touched, and as their probability is 0 any finite value will do.
struct Context {
  PagedHead keys, values;
  const int* blocks;
  int last, lane_row, lane_column;

  __device__ bool has(int tile) const { return tile * TILE <= last; }

  // The block of a whole tile, to be fetched ahead; with blocks below a tile's size each token looks up its own.
  __device__ int block_of_tile(int tile) const {
    return BLOCK_SIZE >= TILE && has(tile) ? __ldg(blocks + static_cast<uint32>(tile * TILE) / BLOCK_SIZE) : 0;
  }
  __device__ const elem_t* token(const PagedHead& head, int tile, int tile_block, int index) const {
    const uint32 first = tile * TILE, offset = min(index, last - tile * TILE);
    if constexpr (BLOCK_SIZE >= TILE) return opaque(opaque(head.token(tile_block, first)) + offset * HEAD_DIM);
    return opaque(head.token(__ldg(blocks + (first + offset) / BLOCK_SIZE), first + offset));
  }

  // Zeros where no token of the tile is cached.
  __device__ void load(KeyTile& tile, int index, int block) const {
    if (!has(index)) {
      tile = {};
      return;
    }
    const elem_t* low = token(keys, index, block, lane_row);
    const elem_t* high = token(keys, index, block, lane_row + 8);
#pragma unroll
    for (int i = 0; i < KEY_LOADS; i++) {
      tile.low[i] = load16_stream(low + i * 32);
      tile.high[i] = load16_stream(high + i * 32);
    }
  }

  __device__ void load(ValueTile& tile, int index, int block) const {
    if (!has(index)) {
      tile = {};
      return;
    }
#pragma unroll
    for (int t = 0; t < 4; t++) {
      const elem_t* source = token(values, index, block, lane_column * 2 + t % 2 + t / 2 * 8);
      uint32(&words)[VALUE_WORDS] = tile.words[t];
#pragma unroll
      for (int i = 0; i < VALUE_LOADS; i++) {
        const uint4 v = load16_stream(source + i * 64);
        words[i * 4] = v.x, words[i * 4 + 1] = v.y, words[i * 4 + 2] = v.z, words[i * 4 + 3] = v.w;
      }
      if constexpr (HEAD_DIM % 64 != 0) {
        const uint2 v = load8_stream(source + VALUE_LOADS * 64 - lane_row * 4);
        words[VALUE_LOADS * 4] = v.x, words[VALUE_LOADS * 4 + 1] = v.y;
      }
    }
  }
};

// The row's own token takes its place in a tile: `key` and `value` elem_t [HEAD_DIM], 16-byte aligned.
__device__ __forceinline__ void insert_token(KeyTile& keys, int index, const elem_t* key, int lane) {
  if (index % 8 != lane / 4) return;
#pragma unroll
  for (int i = 0; i < KEY_LOADS; i++) {
    const uint4 v = load16(key + i * 32 + lane % 4 * 8);
    if (index < 8)
      keys.low[i] = v;
    else
      keys.high[i] = v;
  }
}
__device__ __forceinline__ void insert_token(ValueTile& values, int index, const elem_t* value, int lane) {
#pragma unroll
  for (int t = 0; t < 4; t++) {
    if (index != lane % 4 * 2 + t % 2 + t / 2 * 8) continue;
#pragma unroll
    for (int w = 0; w < VALUE_WORDS; w++)
      values.words[t][w] = *reinterpret_cast<const uint32*>(value + value_dim(w, lane / 4));
  }
}

// Running softmax of a warp. Lane (r, c) holds heads 8h + 2c and 8h + 2c + 1: their maximum (of log2 scores), its own
// tokens' part of their sum, and in accumulators [word] the pair of dimensions of value_dim for each of the two heads.
struct Softmax {
  float max[HEAD_TILES][2], sum[HEAD_TILES][2];
  float output[HEAD_TILES][VALUE_WORDS][4];
};

__device__ __forceinline__ void clear(Softmax& state) {
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    state.max[h][0] = state.max[h][1] = -infinity();
    state.sum[h][0] = state.sum[h][1] = 0;
#pragma unroll
    for (int w = 0; w < VALUE_WORDS; w++)
#pragma unroll
      for (int i = 0; i < 4; i++) state.output[h][w][i] = 0;
  }
}

// Leaves the warp's results for the other warps: of each head (maximum, sum) in `stats`, and in `outputs` [HEAD_DIM / 2] the
// pairs of dimensions, not yet divided by the sum.
__device__ __forceinline__ void share_results(const Softmax& state, float2 (&stats)[GROUP_SIZE],
                                              float2 (&outputs)[GROUP_SIZE][HEAD_DIM / 2], int lane) {
  const int r = lane / 4, c = lane % 4;
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = state.sum[h][i];
#pragma unroll
      for (int offset = 4; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
      const int head = h * 8 + c * 2 + i;
      if (head >= GROUP_SIZE) continue;
      if (r == 0) stats[head] = make_float2(state.max[h][i], sum);
#pragma unroll
      for (int w = 0; w < VALUE_WORDS; w++)
        outputs[head][value_dim(w, r) / 2] = make_float2(state.output[h][w][i], state.output[h][w][i + 2]);
    }
}

__device__ __forceinline__ void attend_keys(float (&scores)[HEAD_TILES][4], const KeyTile& keys,
                                            const uint4 (&query)[HEAD_TILES][KEY_LOADS]) {
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    float even[4] = {}, odd[4] = {};
#pragma unroll
    for (int i = 0; i < KEY_LOADS; i++) {
      const uint4 low = keys.low[i], high = keys.high[i], q = query[h][i];
      mma_m16n8k16(even, low.x, high.x, low.y, high.y, q.x, q.y);
      mma_m16n8k16(odd, low.z, high.z, low.w, high.w, q.z, q.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) scores[h][i] = even[i] + odd[i];
  }
}

// Replaces the tile's scores by its probabilities, as B fragments, and rescales what came before.
__device__ __forceinline__ void update_softmax(uint32 (&probabilities)[HEAD_TILES][2], Softmax& state,
                                               const float (&scores)[HEAD_TILES][4], bool low_visible,
                                               bool high_visible, float scale_log2) {
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    float p[4], factor[2];
#pragma unroll
    for (int i = 0; i < 4; i++) p[i] = (i < 2 ? low_visible : high_visible) ? scores[h][i] * scale_log2 : -infinity();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float max = fmaxf(p[i], p[i + 2]);
#pragma unroll
      for (int offset = 4; offset < WARP; offset *= 2) max = fmaxf(max, __shfl_xor_sync(FULL_MASK, max, offset));
      max = fmaxf(max, state.max[h][i]);
      factor[i] = exp2_approx(state.max[h][i] - max);
      state.max[h][i] = max;
      p[i] = exp2_approx(p[i] - max), p[i + 2] = exp2_approx(p[i + 2] - max);
      state.sum[h][i] = state.sum[h][i] * factor[i] + (p[i] + p[i + 2]);
    }
#pragma unroll
    for (int w = 0; w < VALUE_WORDS; w++)
#pragma unroll
      for (int i = 0; i < 4; i++) state.output[h][w][i] *= factor[i % 2];
    probabilities[h][0] = transpose_8x8(pack2(p[0], p[1]));
    probabilities[h][1] = transpose_8x8(pack2(p[2], p[3]));
  }
}

__device__ __forceinline__ void attend_values(Softmax& state, const ValueTile& values,
                                              const uint32 (&probabilities)[HEAD_TILES][2]) {
#pragma unroll
  for (int w = 0; w < VALUE_WORDS; w++) {
    const uint32 x0 = values.words[0][w], x1 = values.words[1][w], x8 = values.words[2][w], x9 = values.words[3][w];
    const uint32 a0 = __byte_perm(x0, x1, 0x5410), a1 = __byte_perm(x0, x1, 0x7632);
    const uint32 a2 = __byte_perm(x8, x9, 0x5410), a3 = __byte_perm(x8, x9, 0x7632);
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++)
      mma_m16n8k16(state.output[h][w], a0, a1, a2, a3, probabilities[h][0], probabilities[h][1]);
  }
}

// Softmax-weighted pair of dimensions of one head, not yet divided by the sum.
struct Partial {
  float max = -infinity(), sum = 0;
  float2 output = {0, 0};

  // Adds parts given by their (maximum, sum) and output. The first part ever added must have a finite maximum; a part
  // of maximum −∞ counts for nothing.
  template <int COUNT>
  __device__ void add(const float2 (&stats)[COUNT], const float2 (&outputs)[COUNT]) {
    float new_max = max;
#pragma unroll
    for (int i = 0; i < COUNT; i++) new_max = fmaxf(new_max, stats[i].x);
    const float factor = exp2_approx(max - new_max);
    max = new_max, sum *= factor, output.x *= factor, output.y *= factor;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const float weight = exp2_approx(stats[i].x - max);
      sum += weight * stats[i].y, output.x += weight * outputs[i].x, output.y += weight * outputs[i].y;
    }
  }

  __device__ uint32 result() const { return pack2(__fdividef(output.x, sum), __fdividef(output.y, sum)); }
};
