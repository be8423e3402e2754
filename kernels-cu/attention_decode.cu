// Attention of rows with one query token over their paged context (split-KV flash-decoding).
//
// Shapes: qkv [R, (g + 2)·NKV·D], keys and values [B, NKV, BS, D], out [R, g·NKV·D]; row r's query is token r and sits
// at position context_lens[r] − 1. A row of context 0 or slot −1 (padding of a captured batch) is left alone.
//
// Parallelisation: a CTA for each (KV head, row, split), the split slowest so that the extra splits, which only long
// rows fill, come last. Lengths are read here, so a captured launch stays valid while they grow: a row is cut into
// min(gridDim.z, context / min_split) equal splits and the other CTAs leave at once. A warp takes every WARPS-th tile
// of 16 tokens. Splits write float partials and the last one to arrive merges them in split order: no second launch,
// and results repeat bit for bit and do not depend on the other rows.
//
// Why this version: reading the cache once at full bandwidth is all that counts, so everything else is kept off its
// way. Both products run on tensor cores with the tokens or dimensions of the cache as the 16-wide side and the g ≤ 8
// query heads as the 8-wide side (Sᵀ = K·Qᵀ, Oᵀ = Vᵀ·Pᵀ): about 8 instructions a token whatever g is, where FMA code
// needs 24 or more. The order of summed indices is free, so 16-byte global loads land directly in fragments: no shared
// memory, no barriers in the loop. Each warp keeps the next tile's keys and values in flight (8 KiB at D = 128).
//
// The kernel before, rope_store, lets this one start when all before it have finished: lengths, tables and cached tokens are
// read at once, and only the query and the row's own token wait for it.
#include "attention.cuh"

#if !defined(DECODE_TILE) || !defined(DECODE_WARPS) || !defined(STATIC_SHARED_BYTES)
#error "DECODE_TILE, DECODE_WARPS and STATIC_SHARED_BYTES come from src/backend/cuda/ops/decode-attention.ts"
#endif

constexpr int WARPS = DECODE_WARPS;
constexpr int TILE = DECODE_TILE;
static_assert(TILE == 16, "DECODE_TILE must be 16: the tokens are the 16-wide side of the products");
constexpr int HEAD_TILES = ceil_div(GROUP_SIZE, 8);
// 16-byte loads a lane needs for one token of keys: a quad covers 32 dimensions at a time.
constexpr int KEY_LOADS = HEAD_DIM / 32;
// 32-bit words a lane holds of one token of values: 8 lanes cover 64 dimensions with 16-byte loads, a tail of 32 with
// 8-byte loads. Word i is the pair of dimensions value_dim(i), value_dim(i) + 1.
constexpr int VALUE_WORDS = HEAD_DIM / 16;
constexpr int VALUE_LOADS = HEAD_DIM / 64;
// Splits whose results are fetched together.
constexpr int SPLITS_AT_ONCE = 16;
static_assert(WARPS * GROUP_SIZE * (HEAD_DIM + 2) * 4 < STATIC_SHARED_BYTES,
              "the warps' results must fit static shared memory");

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

// A row's context in the cache of one KV head, as one lane reads it. Tokens past `last` are read as `last`: what lies
// there is never touched, and as their probability is 0 any finite value will do.
struct Context {
  PagedHead keys, values;
  const int* blocks;
  int last, lane_row, lane_column;

  // The block of a whole tile, to be fetched ahead; with blocks below a tile's size each token looks up its own.
  __device__ int block_of_tile(int tile) const {
    return BLOCK_SIZE >= TILE ? __ldg(blocks + static_cast<uint32>(min(tile * TILE, last)) / BLOCK_SIZE) : 0;
  }
  __device__ const elem_t* token(const PagedHead& head, int tile, int tile_block, int index) const {
    const uint32 first = tile * TILE, offset = min(index, last - tile * TILE);
    if constexpr (BLOCK_SIZE >= TILE) return opaque(opaque(head.token(tile_block, first)) + offset * HEAD_DIM);
    return opaque(head.token(__ldg(blocks + (first + offset) / BLOCK_SIZE), first + offset));
  }

  __device__ void load(KeyTile& tile, int index, int block) const {
    const elem_t* low = token(keys, index, block, lane_row);
    const elem_t* high = token(keys, index, block, lane_row + 8);
#pragma unroll
    for (int i = 0; i < KEY_LOADS; i++) {
      tile.low[i] = load16_stream(low + i * 32);
      tile.high[i] = load16_stream(high + i * 32);
    }
  }

  __device__ void load(ValueTile& tile, int index, int block) const {
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

// Running softmax of a warp. Lane (r, c) holds heads 8h + 2c and 8h + 2c + 1: their maximum (of log2 scores), its own
// tokens' part of their sum, and in accumulators [word] the pair of dimensions of value_dim for each of the two heads.
struct Softmax {
  float max[HEAD_TILES][2], sum[HEAD_TILES][2];
  float output[HEAD_TILES][VALUE_WORDS][4];
};

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

// Read past L1, which is not coherent with what other CTAs have just written.
__device__ __forceinline__ float2 load_shared_result(const float2* p) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
  return v;
}

// True in every thread of the last of `count` CTAs to arrive, which then sees what the others wrote before. The counter
// is 0 again afterwards.
__device__ __forceinline__ bool arrive_last(uint32* counter, uint32 count) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32 before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(counter), "r"(count - 1)
                 : "memory");
    last = before == count - 1;
  }
  __syncthreads();
  return last;
}

// Grid (NKV, R, splits). partials [R, NKV, splits, g, D] and partial_stats [R, NKV, splits, g] (maximum, sum) are
// scratch; counters [R, NKV] must be 0 and are 0 again afterwards. scale_log2 is the scale of the scores times log2(e);
// window 0 = none; min_split_tiles: a split has at least this many tiles of 16 tokens unless the row is shorter.
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    attention_decode(elem_t* __restrict__ out, const elem_t* qkv, const elem_t* __restrict__ keys,
                     const elem_t* __restrict__ values, const int* __restrict__ block_tables,
                     const int* __restrict__ row_slots, const int* __restrict__ context_lens, float2* partials,
                     float2* partial_stats, uint32* counters, int max_blocks, float scale_log2, int window,
                     uint32 min_split_tiles) {
  GRID_DEPENDENCY_LAUNCH();
  const int kv_head = blockIdx.x, num_kv_heads = gridDim.x, row = blockIdx.y;
  const uint32 split = blockIdx.z;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
  const int slot = row_slots[row], context = context_lens[row];

  const int first_position = window > 0 ? max(context - window, 0) : 0;
  const uint32 first_tile = static_cast<uint32>(first_position) / TILE;
  const uint32 num_tiles = (static_cast<uint32>(context) + TILE - 1) / TILE - first_tile;
  const uint32 wanted = min(gridDim.z, (num_tiles + min_split_tiles - 1) / min_split_tiles);
  const uint32 split_tiles = (num_tiles + max(wanted, 1u) * WARPS - 1) / (max(wanted, 1u) * WARPS) * WARPS;
  // Asking for the slot here makes both loads of the row's state go out at once.
  if (split * split_tiles >= num_tiles || slot < 0) {
    GRID_DEPENDENCY_WAIT();
    return;
  }
  const int end_tile = first_tile + min((split + 1) * split_tiles, num_tiles);
  int tile = first_tile + split * split_tiles + warp;

  const Context cached = {PagedHead(keys, kv_head, num_kv_heads, c * 8),
                          PagedHead(values, kv_head, num_kv_heads, r * 8),
                          block_tables + static_cast<int64>(slot) * max_blocks,
                          context - 1,
                          r,
                          c};
  KeyTile key_tile;
  ValueTile value_tile;
  const bool works = tile < end_tile, is_cached = (tile + 1) * TILE < context;
  const int block = works ? cached.block_of_tile(tile) : 0;
  int next_block = works ? cached.block_of_tile(tile + WARPS) : 0;
  if (works && is_cached) {
    cached.load(key_tile, tile, block);
    cached.load(value_tile, tile, block);
  }
  GRID_DEPENDENCY_WAIT();

  uint4 query[HEAD_TILES][KEY_LOADS];
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    const int head = h * 8 + r;
    const elem_t* source =
        qkv + (static_cast<int64>(row) * (GROUP_SIZE + 2) * num_kv_heads + kv_head * GROUP_SIZE + head) * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < KEY_LOADS; i++)
      query[h][i] = head < GROUP_SIZE ? load16_coherent(source + i * 32 + c * 8) : make_uint4(0, 0, 0, 0);
  }

  Softmax state;
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
    state.max[h][0] = state.max[h][1] = -infinity();
    state.sum[h][0] = state.sum[h][1] = 0;
#pragma unroll
    for (int w = 0; w < VALUE_WORDS; w++)
#pragma unroll
      for (int i = 0; i < 4; i++) state.output[h][w][i] = 0;
  }

  if (works) {
    if (!is_cached) {
      cached.load(key_tile, tile, block);
      cached.load(value_tile, tile, block);
    }
    while (true) {
      const int next = tile + WARPS;
      const int low = tile * TILE + r, high = low + 8;
      float scores[HEAD_TILES][4];
      attend_keys(scores, key_tile, query);
      if (next < end_tile) cached.load(key_tile, next, next_block);
      uint32 probabilities[HEAD_TILES][2];
      update_softmax(probabilities, state, scores, low >= first_position && low < context,
                     high >= first_position && high < context, scale_log2);
      attend_values(state, value_tile, probabilities);
      if (next >= end_tile) break;
      cached.load(value_tile, next, next_block);
      next_block = cached.block_of_tile(next + WARPS);
      tile = next;
    }
  }

  __shared__ float2 warp_output[WARPS][GROUP_SIZE][HEAD_DIM / 2];
  __shared__ float2 warp_stats[WARPS][GROUP_SIZE];
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = state.sum[h][i];
#pragma unroll
      for (int offset = 4; offset < WARP; offset *= 2) sum += __shfl_xor_sync(FULL_MASK, sum, offset);
      const int head = h * 8 + c * 2 + i;
      if (head >= GROUP_SIZE) continue;
      if (r == 0) warp_stats[warp][head] = make_float2(state.max[h][i], sum);
#pragma unroll
      for (int w = 0; w < VALUE_WORDS; w++)
        warp_output[warp][head][value_dim(w, r) / 2] =
            make_float2(state.output[h][w][i], state.output[h][w][i + 2]);
    }
  }
  __syncthreads();

  const uint32 num_splits = (num_tiles + split_tiles - 1) / split_tiles;
  const int64 group = static_cast<int64>(row) * num_kv_heads + kv_head;
  constexpr int PAIRS = GROUP_SIZE * HEAD_DIM / 2;
  uint32* group_out = reinterpret_cast<uint32*>(out) + group * PAIRS;
  float2* group_partials = partials + group * gridDim.z * PAIRS;
  float2* group_stats = partial_stats + group * gridDim.z * GROUP_SIZE;
#pragma unroll
  for (int pair = threadIdx.x; pair < PAIRS; pair += WARPS * WARP) {
    const int head = pair / (HEAD_DIM / 2), dim = pair % (HEAD_DIM / 2);
    float2 stats[WARPS], outputs[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) stats[w] = warp_stats[w][head], outputs[w] = warp_output[w][head][dim];
    Partial total;
    total.add(stats, outputs);
    if (num_splits == 1) {
      group_out[pair] = total.result();
    } else {
      group_partials[split * PAIRS + pair] = total.output;
      if (dim == 0) group_stats[split * GROUP_SIZE + head] = make_float2(total.max, total.sum);
    }
  }
  if (num_splits == 1 || !arrive_last(counters + group, num_splits)) return;

  for (int pair = threadIdx.x; pair < PAIRS; pair += WARPS * WARP) {
    Partial total;
    for (uint32 first = 0; first < num_splits; first += SPLITS_AT_ONCE) {
      float2 stats[SPLITS_AT_ONCE], outputs[SPLITS_AT_ONCE];
#pragma unroll
      for (int i = 0; i < SPLITS_AT_ONCE; i++) {
        const uint32 s = first + i;
        stats[i] = {-infinity(), 0}, outputs[i] = {0, 0};
        if (s >= num_splits) continue;
        stats[i] = load_shared_result(group_stats + s * GROUP_SIZE + pair / (HEAD_DIM / 2));
        outputs[i] = load_shared_result(group_partials + s * PAIRS + pair);
      }
      total.add(stats, outputs);
    }
    group_out[pair] = total.result();
  }
}
