// The whole of attend for rows with one query token: query and key norm, rotary embedding, the store of the new key and
// value, and attention over the paged context (split-KV flash-decoding).
//
// Shapes: qkv [R, (g + 2)·NKV·D], keys and values cache_t [B, NKV, BS, D], out [R, g·NKV·D]; row r's token is token r and sits at
// position context_lens[r] − 1. A row of context 0 or slot −1 (padding of a captured batch) is left alone; one of slot
// mapping −1 is not stored. With READS_ONLY qkv is [R, g·NKV·D]: the token's key and value are in the cache, from another layer.
//
// Parallelisation: a CTA for each (KV head, row, split), the split slowest so that the extra splits, which only long
// rows fill, come last. Lengths are read here, so a captured launch stays valid while they grow: a row is cut into
// min(gridDim.z, context / min_split) equal splits, one of a few hundred tokens is not cut, and the other CTAs leave at once. A warp takes every WARPS-th tile
// of TILE tokens; of heads too wide for a warp's registers SLICES warps take a tile, a slice of the dimensions each, and add
// up their parts of the scores. Each CTA prepares its group's queries for itself; the one of the last split also prepares and stores the
// token's key and value, and takes them from shared memory. Splits write float partials and the last one to arrive merges
// them in split order: no second launch, and results repeat bit for bit and do not depend on the other rows' contents. Wide
// heads leave more than one CTA should read: attention_merge.cu merges them.
//
// Why this version: reading the cache once at full bandwidth is all that counts, so everything else is kept off its
// way. Tiles land directly in fragments (decode_tiles.cuh): no shared memory, no barriers in the loop but the one that slices
// need. Each warp keeps the next tile's keys and values in flight (8 KiB at D = 128): a tile of eight bits has twice the tokens.
//
// Lengths, tables, cached tokens, norms and rotation angles are read before the wait (see GRID_DEPENDENCY_PUBLISH): what is
// left after it are the token's projections. With READS_ONLY cached tokens are read after it, too.
#include "decode_splits.cuh"
#include "group_projections.cuh"

#if !defined(STATIC_SHARED_BYTES)
#error "STATIC_SHARED_BYTES comes from src/backend/cuda/ops/decode-attention.ts"
#endif

static_assert(SLICES == 1 || SLICES == WARPS, "the warps of a block have each a tile, or all the same");

// READS_ONLY: keys and values of the step's tokens are in the cache, and qkv has queries alone.
#if defined(READS_ONLY)
constexpr bool STORES = false;
#else
constexpr bool STORES = true;
#endif
constexpr int GIVEN = STORES ? PROJECTED : GROUP_SIZE;

// The warps' results.
struct WarpResults {
  float2 outputs[WARPS][GROUP_SIZE][SLICE_DIMS / 2];
  float2 stats[WARPS][GROUP_SIZE];
};
// The slices' parts of a tile's scores, and of the tile before.
struct SliceScores {
  float4 parts[2][SLICES][PARTS * HEAD_TILES][WARP];
};
struct Shared {
  // With slices SliceScores, without WarpResults.
  alignas(VECTOR_BYTES) unsigned char exchanged[SLICES > 1 ? sizeof(SliceScores) : sizeof(WarpResults)];
  GroupProjections projections;
};
static_assert(sizeof(Shared) < STATIC_SHARED_BYTES, "what warps exchange must fit static shared memory");

// Of a slice's part of a tile's scores, the scores. The warps of all slices call it together; `turn` is 0 and 1 by turns.
__device__ __forceinline__ void add_slices(Scores& scores, SliceScores& shared, int turn, int slice, int lane) {
#pragma unroll
  for (int part = 0; part < PARTS; part++)
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      const float(&s)[4] = scores[part][h];
      shared.parts[turn][slice][part * HEAD_TILES + h][lane] = make_float4(s[0], s[1], s[2], s[3]);
    }
  __syncthreads();
#pragma unroll
  for (int part = 0; part < PARTS; part++)
#pragma unroll
    for (int h = 0; h < HEAD_TILES; h++) {
      float4 sum = shared.parts[turn][0][part * HEAD_TILES + h][lane];
#pragma unroll
      for (int i = 1; i < SLICES; i++) {
        const float4 x = shared.parts[turn][i][part * HEAD_TILES + h][lane];
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
      }
      float(&s)[4] = scores[part][h];
      s[0] = sum.x, s[1] = sum.y, s[2] = sum.z, s[3] = sum.w;
    }
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
// scratch, or with slices what attention_merge reads; counters [R, NKV] must be 0 and are 0 again afterwards. scale_log2 is the scale of the scores times log2(e);
// window 0 = none; min_split_tiles: a split has at least this many tiles unless the row is shorter. The norms may be null.
// scale_log2 has key_scale in it. query_scales [positions], sinks [heads] and cap_log2 are of launches that have them.
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    attention_decode(elem_t* __restrict__ out, const elem_t* qkv, cache_t* keys, cache_t* values,
                     const float* __restrict__ cos_sin, const elem_t* __restrict__ query_norm,
                     const elem_t* __restrict__ key_norm, const int* __restrict__ slot_mapping,
                     const int* __restrict__ block_tables, const int* __restrict__ row_slots,
                     const int* __restrict__ context_lens, float2* partials, float2* partial_stats, uint32* counters,
                     int max_blocks, float scale_log2, int window, float eps, uint32 min_split_tiles,
                     float key_scale, float value_scale, const float* __restrict__ query_scales,
                     const float* __restrict__ sinks, float cap_log2) {
  const int kv_head = blockIdx.x, num_kv_heads = gridDim.x, row = blockIdx.y;
  const uint32 split = blockIdx.z;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
  const int slot = row_slots[row], context = context_lens[row];

  const RowSplits splits(context, window, gridDim.z, min_split_tiles);
  const int first_position = splits.first_position;
  const uint32 first_tile = splits.first_tile, num_tiles = splits.num_tiles, split_tiles = splits.split_tiles;
  // Asking for the slot here makes both loads of the row's state go out at once.
  if (split * split_tiles >= num_tiles || slot < 0) {
    GRID_DEPENDENCY_WAIT();
    return;
  }
  const int end_tile = first_tile + min((split + 1) * split_tiles, num_tiles);
  // The warp's dimensions begin with slice_dim.
  const int slice = warp % SLICES, slice_dim = slice * SLICE_DIMS;
  int tile = first_tile + split * split_tiles + warp / SLICES;

  // The token that this step brings; where this kernel stores it, it is not in the cache yet.
  const int token = context - 1;
  const bool has_token = STORES && end_tile * TILE >= context;
  const Context cached = {PagedHead(keys, kv_head, num_kv_heads, slice_dim + c * KEY_LANE_DIMS),
                          PagedHead(values, kv_head, num_kv_heads, slice_dim + r * VALUE_LANE_DIMS),
                          block_tables + static_cast<int64>(slot) * max_blocks,
                          STORES ? token - 1 : token,
                          r,
                          c};
  KeyTile key_tile;
  ValueTile value_tile;
  const bool works = tile < end_tile;
  const TileBlocks blocks = works ? blocks_of_tile(cached, tile) : TileBlocks{};
  TileBlocks next_blocks = works ? blocks_of_tile(cached, tile + TILE_WARPS) : TileBlocks{};
  // Of a head of the token's projections LANES lanes have a part each. What they need of other memory is asked for while the
  // block tables are under way.
  constexpr int HEADS_AT_ONCE = WARP / LANES, ROUNDS = ceil_div(PROJECTED, WARPS * HEADS_AT_ONCE);
  const auto norm_of = [&](int head) {
    return query_norm == nullptr || head >= (STORES ? VALUE : KEY) ? HeadPart{} : load_head(head < GROUP_SIZE ? query_norm : key_norm);
  };
  const int heads = has_token ? PROJECTED : GROUP_SIZE;
  int head = warp * HEADS_AT_ONCE + lane / LANES;
  HeadPart weight = norm_of(head);
  const HeadAngles angles = load_head_angles(cos_sin + static_cast<int64>(token) * ROTARY_DIM);
  const int mapped = has_token ? slot_mapping[row] : -1;
  const float query_scale = SCALES_QUERIES ? query_scales[token] : 1;
  const auto load_first_tile = [&] {
    if (!works) return;
    load_tile(key_tile, cached, tile, blocks);
    load_tile(value_tile, cached, tile, blocks);
  };
  if (STORES) load_first_tile();

  __shared__ Shared shared;
  GRID_DEPENDENCY_WAIT();
  if (!STORES) load_first_tile();
  HeadPart parts[ROUNDS];
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const int i = head + round * WARPS * HEADS_AT_ONCE;
    const int source = i < GROUP_SIZE ? kv_head * GROUP_SIZE + i : num_kv_heads * i + kv_head;
    parts[round] = {};
    if (i < heads)
      parts[round] = load_head<true>(qkv + (static_cast<int64>(row) * GIVEN * num_kv_heads + source) * HEAD_DIM);
  }
#pragma unroll
  for (int round = 0; round < ROUNDS; round++) {
    const bool is_query = head < GROUP_SIZE, is_value = head == VALUE;
    HeadPart& part = parts[round];
    if (query_norm != nullptr) {
      // All lanes take part in the sum, whatever their head needs.
      const float scale = rsqrtf(sum_of_squares(part) / HEAD_DIM + eps);
      if (!is_value)
        scale_head(part, weight, scale);
      else if (NORMALISES_VALUES)
        multiply(part, scale);
    }
    if (!is_value) rotate(part, angles);
    if (SCALES_QUERIES && is_query) multiply(part, query_scale);
    if (head < heads) shared.projections.keep(head, part, key_scale, value_scale);
    if (head < heads && !is_query && mapped >= 0) {
      const int64 at = (static_cast<int64>(mapped / BLOCK_SIZE) * num_kv_heads + kv_head) * BLOCK_SIZE + mapped % BLOCK_SIZE;
      store_cached((is_value ? values : keys) + at * HEAD_DIM, part, is_value ? value_scale : key_scale);
    }
    head += WARPS * HEADS_AT_ONCE;
    weight = norm_of(head);
  }
  __syncthreads();
  // What this CTA stores in the cache was stored before the barrier.
  if (threadIdx.x == WARPS * WARP - 1) {
    if (has_token) GRID_DEPENDENCY_PUBLISH();
    GRID_DEPENDENCY_LAUNCH();
  }

  uint4 query[HEAD_TILES][QUERY_LOADS];
#pragma unroll
  for (int h = 0; h < HEAD_TILES; h++)
#pragma unroll
    for (int i = 0; i < QUERY_LOADS; i++)
      query[h][i] =
          h * 8 + r < GROUP_SIZE ? load16(&shared.projections.heads[h * 8 + r][slice_dim + query_dim(i, c)]) : make_uint4(0, 0, 0, 0);

  Softmax state;
  clear(state);

  if (works) {
    for (int turn = 0;; turn ^= 1) {
      const int next = tile + TILE_WARPS;
      const int low = tile * TILE + r, own = token - tile * TILE;
      if (STORES && own < TILE) insert_token(key_tile, own, shared.projections.key() + slice_dim, lane);
      Scores scores;
      attend_keys(scores, key_tile, query);
      if (next < end_tile) load_tile(key_tile, cached, next, next_blocks);
      if constexpr (SLICES > 1) add_slices(scores, reinterpret_cast<SliceScores&>(shared.exchanged), turn, slice, lane);
      Probabilities probabilities;
      const auto is_visible = [&](int position) { return position >= first_position && position < context; };
      update_softmax(probabilities, state, scores, low, is_visible, scale_log2, cap_log2);
      if (STORES && own < TILE) insert_token(value_tile, own, shared.projections.value() + slice_dim, lane);
      attend_values(state.output, value_tile, probabilities);
      if (next >= end_tile) break;
      load_tile(value_tile, cached, next, next_blocks);
      next_blocks = blocks_of_tile(cached, next + TILE_WARPS);
      tile = next;
    }
  }

  const uint32 num_splits = splits.count();
  const int64 group = static_cast<int64>(row) * num_kv_heads + kv_head;
  uint32* group_out = reinterpret_cast<uint32*>(out) + group * GROUP_PAIRS;
  float2* group_partials = partials + group * gridDim.z * GROUP_PAIRS;
  float2* group_stats = partial_stats + group * gridDim.z * GROUP_SIZE;
  // The split's result for one of the group's pairs: of the row, or a part to be merged.
  const auto leave = [&](int pair, Partial total) {
    const int head = pair / (HEAD_DIM / 2);
    if (num_splits == 1) {
      total.sum = with_sink(total.sum, total.max, sinks, kv_head * GROUP_SIZE + head);
      group_out[pair] = total.result(value_scale);
    } else {
      group_partials[split * GROUP_PAIRS + pair] = total.output;
      if (pair % (HEAD_DIM / 2) == 0) group_stats[split * GROUP_SIZE + head] = make_float2(total.max, total.sum);
    }
  };
  if constexpr (SLICES > 1) {
    each_result(state, lane, [&](int head, float2 stat, int pair, float2 output) {
      leave((head * HEAD_DIM + slice_dim) / 2 + pair, {stat.x, stat.y, output});
    });
  } else {
    auto& results = reinterpret_cast<WarpResults&>(shared.exchanged);
    share_results(state, results.stats[warp], results.outputs[warp], lane);
    __syncthreads();
#pragma unroll
    for (int pair = threadIdx.x; pair < GROUP_PAIRS; pair += WARPS * WARP) {
      const int head = pair / (HEAD_DIM / 2), dim = pair % (HEAD_DIM / 2);
      float2 stats[WARPS], outputs[WARPS];
#pragma unroll
      for (int w = 0; w < WARPS; w++) stats[w] = results.stats[w][head], outputs[w] = results.outputs[w][head][dim];
      Partial total;
      total.add(stats, outputs);
      leave(pair, total);
    }
    if (num_splits == 1 || !arrive_last(counters + group, num_splits)) return;

    for (int pair = threadIdx.x; pair < GROUP_PAIRS; pair += WARPS * WARP) {
      Partial total = merge_splits(group_partials, group_stats, num_splits, pair);
      total.sum = with_sink(total.sum, total.max, sinks, kv_head * GROUP_SIZE + pair / (HEAD_DIM / 2));
      group_out[pair] = total.result(value_scale);
    }
  }
}
