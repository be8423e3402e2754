// attend for rows of one token each as a stage of a longer launch: query and key norm, rotary embedding, the store of the new key
// and value, and attention over the paged context (attention_decode.cu).
//
// An item is a row's context in the cache of one KV head. Where blocks are left over, items are cut into parts of as many tiles
// each; a block takes every CTASth part, usually one at most. Projections come from the blocks' exchange (tagged.cuh); the
// first part's block merges what the others leave there, in their order, so that results repeat bit for bit. Each warp takes
// every WARPSth tile of a part; the first ones are copied before the projections are computed.
#pragma once
#include "group_projections.cuh"
#include "layer_product.cuh"
#include "shared_tiles.cuh"

#if !defined(SPLIT_TILES)
#error "SPLIT_TILES comes from src/backend/cuda/ops/decode-layers.ts"
#endif

constexpr int GROUP_DIMS = GROUP_SIZE * HEAD_DIM;
// A part's results for the merge: outputs, then maxima and sums.
constexpr int PARTIAL_FLOATS = GROUP_DIMS + 2 * GROUP_SIZE;
// Parts whose results are fetched together.
constexpr int PARTS_AT_ONCE = 4;

// Results of the warps.
struct AttentionResults {
  float2 outputs[WARPS][GROUP_SIZE][HEAD_DIM / 2];
  float2 stats[WARPS][GROUP_SIZE];
};

struct AttentionShared {
  alignas(128) unsigned char tiles[WARPS][TILE_BYTES];
  GroupProjections projections;
  // Of each row: its slot, the tokens before its own, and the tiles that it attends to; none for padding.
  struct {
    int slot, cached, first_tile, tiles;
  } rows[MAX_TOKENS];
};

// The batch, the same for all layers.
struct AttentionBatch {
  const float* cos_sin;
  const int *slot_mapping, *block_tables;
  int tokens, kv_heads, max_blocks, window;
  float scale_log2, eps;
};

// Addresses that differ between layers; norms may be null.
struct AttentionLayer {
  const elem_t *query_norm, *key_norm;
  cache_t *keys, *values;
#if defined(CACHE_FLOAT8)
  float key_scale, value_scale;
#else
  static constexpr float key_scale = 1, value_scale = 1;
#endif
};

// Tiles from `first` on of item (row, head): part `index` of `count`, and `number` of all.
struct AttentionPart {
  int row, head, index, count, number;
  int first, end;

  __device__ __forceinline__ bool is_empty() const { return first >= end; }
};

struct LayerAttention {
  AttentionShared& shared;
  AttentionResults& results;  // whose earlier contents all threads have read when `run` is called
  const AttentionBatch& batch;
  uint64* const partials;  // [parts][PARTIAL_FLOATS]
  int part_tiles = 0;
  AttentionPart own = {};  // this block's first part

  // Once a launch; all threads call it. row_slots −1 or context_lens 0: padding, whose result is 0.
  __device__ __forceinline__ void plan(const int* row_slots, const int* context_lens) {
    if (threadIdx.x < batch.tokens) {
      const int context = context_lens[threadIdx.x], slot = row_slots[threadIdx.x];
      const int first = batch.window > 0 ? max(context - batch.window, 0) / TILE : 0;
      const bool valid = slot >= 0 && context > 0;
      shared.rows[threadIdx.x] = {slot, context - 1, first, valid ? ceil_div(context, TILE) - first : 0};
    }
    named_barrier_sync(1, CONSUMERS);
    // As many parts as there are blocks, so long as they have SPLIT_TILES at least.
    int all = 0;
    for (int row = 0; row < batch.tokens; row++) all += shared.rows[row].tiles;
    const int spare = CTAS - batch.tokens * batch.kv_heads;
    const int share = spare > 0 ? ceil_div(all * batch.kv_heads, spare) : all;
    part_tiles = max(ceil_div(share, WARPS) * WARPS, SPLIT_TILES);
    own = part(blockIdx.x);
  }

  // Starts to copy what a layer's attention reads first; all threads call it, before `run`.
  __device__ __forceinline__ void prefetch(const AttentionLayer& layer) const { copy(layer, own, own.first + threadIdx.x / WARP); }

  // Its count is 0 past the last.
  __device__ __forceinline__ AttentionPart part(int number) const {
    int index = number;
    for (int row = 0; row < batch.tokens; row++) {
      const int tiles = shared.rows[row].tiles, count = max(ceil_div(tiles, part_tiles), 1);
      if (index < count * batch.kv_heads) {
        const int split = index % count, first = shared.rows[row].first_tile + split * part_tiles;
        const int end = shared.rows[row].first_tile + min((split + 1) * part_tiles, tiles);
        return {row, index / count, split, count, number, first, end};
      }
      index -= count * batch.kv_heads;
    }
    return {0, 0, 0, 0, number, 0, 0};
  }

  // qkv, attended_exchange: the exchange's rows, `pitch` apart. attended [tokens, heads · D] gets the result, too.
  __device__ __forceinline__ void run(const AttentionLayer& layer, const uint64* qkv, uint64* attended_exchange, int pitch,
                                      elem_t* attended, uint32 tag) const {
    AttentionPart p = own;
#pragma unroll 1
    while (p.count > 0) {
      attend(layer, p, qkv + p.row * pitch, tag);
      const int first_dim = p.head * GROUP_DIMS;
      merge(layer, p, attended_exchange + p.row * pitch + first_dim / 2,
            attended + p.row * (batch.kv_heads * GROUP_DIMS) + first_dim, tag);
      p = part(p.number + CTAS);
      copy(layer, p, p.first + threadIdx.x / WARP);
    }
  }

  // Starts to copy a tile of the part, unless it is past the end; a warp's lanes call it together.
  __device__ __forceinline__ void copy(const AttentionLayer& layer, const AttentionPart& p, int tile) const {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (tile < p.end) {
      const auto& row = shared.rows[p.row];
      const CachedHead cached = {batch.block_tables + static_cast<int64>(row.slot) * batch.max_blocks, p.head, row.cached};
      copy_tile(shared_address(shared.tiles[warp]), layer.keys, layer.values, batch.kv_heads, cached, tile,
                cached.block_of(tile), lane);
    }
    cp_async_commit();
  }

  // Takes the group's projections in; queries and the key are normalised and rotated, the new key and value stored.
  __device__ __forceinline__ void project(const AttentionLayer& layer, const AttentionPart& p, const uint64* qkv,
                                          uint32 tag) const {
    constexpr int HEADS_AT_ONCE = CONSUMERS / LANES, PASSES = ceil_div(PROJECTED, HEADS_AT_ONCE);
    const int own = shared.rows[p.row].cached;
    const bool has_token = !p.is_empty() && p.end * TILE > own;
    const int slot = has_token ? __ldg(batch.slot_mapping + p.row) : -1;
    const int64 target =
        ((static_cast<int64>(slot / BLOCK_SIZE) * batch.kv_heads + p.head) * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM;
    // What the heads need besides is asked for before they are there.
    HeadPart weights[PASSES];
    const HeadAngles angles = load_head_angles(batch.cos_sin + static_cast<int64>(max(own, 0)) * ROTARY_DIM);
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      const int head = pass * HEADS_AT_ONCE + threadIdx.x / LANES;
      if (layer.query_norm != nullptr && head < VALUE)
        weights[pass] = load_head(head < GROUP_SIZE ? layer.query_norm : layer.key_norm);
    }
    for (int i = threadIdx.x; i < PROJECTED * HEAD_DIM / 2; i += CONSUMERS) {
      const int head = i / (HEAD_DIM / 2), pair = i % (HEAD_DIM / 2);
      const int source = head == VALUE ? batch.kv_heads * (GROUP_SIZE + 1) + p.head
                         : head == KEY ? batch.kv_heads * GROUP_SIZE + p.head
                                       : p.head * GROUP_SIZE + head;
      const uint32 data = await_tagged(qkv + source * (HEAD_DIM / 2) + pair, tag);
      *reinterpret_cast<uint32*>(&shared.projections.heads[head][pair * 2]) = data;
    }
    named_barrier_sync(1, CONSUMERS);
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      const int head = pass * HEADS_AT_ONCE + threadIdx.x / LANES;
      HeadPart values = {};
      if (head < PROJECTED) values = load_head(shared.projections.heads[head]);
      if (layer.query_norm != nullptr) {
        // All lanes take part in the sum, whatever their head needs.
        const float scale = rsqrtf(sum_of_squares(values) / HEAD_DIM + batch.eps);
        if (head < VALUE)
          scale_head(values, weights[pass], scale);
        else if (NORMALISES_VALUES)
          multiply(values, scale);
      }
      if (head >= PROJECTED) continue;
      if (head < VALUE) rotate(values, angles);
      shared.projections.keep(head, values, layer.key_scale, layer.value_scale);
      if (slot >= 0 && head >= KEY)
        store_cached((head == KEY ? layer.keys : layer.values) + target, values,
                     head == KEY ? layer.key_scale : layer.value_scale);
    }
    named_barrier_sync(1, CONSUMERS);
  }

  // Leaves the warps' results. The warps' first tiles are on their way.
  __device__ __forceinline__ void attend(const AttentionLayer& layer, const AttentionPart& p, const uint64* qkv,
                                         uint32 tag) const {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
    const int own = shared.rows[p.row].cached;  // the position of the row's own token
    const uint32 memory = shared_address(shared.tiles[warp]);
    project(layer, p, qkv, tag);

    uint4 query[HEAD_TILES][QUERY_LOADS];
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
      for (int i = 0; i < QUERY_LOADS; i++)
        query[h][i] =
            h * 8 + r < GROUP_SIZE ? load16(&shared.projections.heads[h * 8 + r][query_dim(i, c)]) : make_uint4(0, 0, 0, 0);
    Softmax state;
    clear(state);
    const float scale_log2 = batch.scale_log2 * layer.key_scale;
    const int first_position = batch.window > 0 ? max(own + 1 - batch.window, 0) : 0;
#pragma unroll 1
    for (int tile = p.first + warp; tile < p.end; tile += WARPS) {
      cp_async_wait<0>();
      __syncwarp();
      const int low = tile * TILE + r, within = own - tile * TILE;
      if (within < TILE) insert_token(memory, within, shared.projections.key(), shared.projections.value(), lane);
      Scores scores;
      attend_keys(scores[0], memory, query, lane);
      Probabilities probabilities;
      const auto is_visible = [&](int position) { return position >= first_position && position <= own; };
      update_softmax(probabilities, state, scores, low, is_visible, scale_log2);
      attend_values(state, memory, probabilities[0], lane);
      __syncwarp();
      copy(layer, p, tile + WARPS);
    }
    share_results(state, results.stats[warp], results.outputs[warp], lane);
    named_barrier_sync(1, CONSUMERS);
  }

  // Merges the warps' results and, in an item's first part, those of the others.
  __device__ __forceinline__ void merge(const AttentionLayer& layer, const AttentionPart& p, uint64* exchange, elem_t* out,
                                        uint32 tag) const {
    uint64* const mine = partials + static_cast<int64>(p.number) * PARTIAL_FLOATS;
    for (int pair = threadIdx.x; pair < GROUP_DIMS / 2; pair += CONSUMERS) {
      const int head = pair / (HEAD_DIM / 2), dim = pair % (HEAD_DIM / 2);
      float2 stats[WARPS], outputs[WARPS];
#pragma unroll
      for (int w = 0; w < WARPS; w++) stats[w] = results.stats[w][head], outputs[w] = results.outputs[w][head][dim];
      Partial total;
      if (!p.is_empty()) total.add(stats, outputs);
      if (p.index > 0) {
        const auto leave = [&](int index, float value) { store_tagged(mine + index, __float_as_uint(value), tag); };
        leave(pair * 2, total.output.x), leave(pair * 2 + 1, total.output.y);
        if (dim == 0) leave(GROUP_DIMS + head * 2, total.max), leave(GROUP_DIMS + head * 2 + 1, total.sum);
        continue;
      }
#pragma unroll 1
      for (int first = 1; first < p.count; first += PARTS_AT_ONCE) {
        float2 others[PARTS_AT_ONCE], other_stats[PARTS_AT_ONCE];
        for (int polls = 0;; polls++) {
          uint32 missing = 0;
#pragma unroll
          for (int i = 0; i < PARTS_AT_ONCE; i++) {
            other_stats[i] = {-infinity(), 0}, others[i] = {0, 0};
            if (first + i >= p.count) continue;
            const uint64* from = mine + (first + i) * PARTIAL_FLOATS;
            const ulonglong2 output = load_tagged2(from + pair * 2), stat = load_tagged2(from + GROUP_DIMS + head * 2);
            missing |= differ(output, tag) | differ(stat, tag);
            others[i] = {__uint_as_float(data_of(output.x)), __uint_as_float(data_of(output.y))};
            other_stats[i] = {__uint_as_float(data_of(stat.x)), __uint_as_float(data_of(stat.y))};
          }
          if (missing == 0) break;
          if (polls == MAX_POLLS) __trap();
        }
        total.add(other_stats, others);
      }
      const uint32 result = p.is_empty() ? 0 : total.result(layer.value_scale);
      store_tagged(exchange + pair, result, tag);
      *reinterpret_cast<uint32*>(out + pair * 2) = result;
    }
  }
};
