// Causal attention of rows with several query tokens over their paged context (FlashAttention-2, Dao 2023).
//
// Shapes: qkv [T, qkv_heads·D], of which the first g·NKV heads are queries, keys and values cache_t [B, NKV, BS, D], out
// [T, g·NKV·D]; row r's queries are tokens cu_seqlens_q[r] .. cu_seqlens_q[r + 1] − 1, the last of them at position
// context_lens[r] − 1. Keys and values come from the cache alone, so a chunk after a cached prefix is nothing special.
//
// Parallelisation: a CTA for each (query tile, KV head, row), the longest tiles of a row first. The g query heads of a
// KV head are packed into the tile's rows (packed row m is head m % g of token m / g), so that each key is read once
// for all of them. A warp owns MMA_ROWS tiles of 16 packed rows; scores and results stay in its registers. Of heads too wide for
// that COLUMNS warps share the rows: each computes the scores of its part of the keys, all learn the maximum of each
// row, and leave probabilities in shared memory, which each multiplies by its part of the values' dimensions.
//
// Why this version: keys and values each have one shared buffer, filled by cp.async while the other is in use: values
// load behind Q·Kᵀ and the next keys behind softmax and P·V. That leaves shared memory for two or three CTAs an SM on
// Hopper and for one on the smallest chips. Tiles have no padding (prefill_tiles.cuh): 32 rows, keys and values of 512 dimensions fit the
// 99 KiB of the smallest chips. Two 16-row tiles a warp halve the shared-memory reads a product needs. Keys and values in eight bits stay so in shared
// memory, and each warp widens what it multiplies (prefill_float8.cuh).
#include "hopper.cuh"
#if defined(CACHE_FLOAT8)
#include "prefill_float8.cuh"
#else
#include "prefill_elements.cuh"
#endif

// Starts copying a tile of keys or values. Tokens from `end` on are not read and become zeros, so that a probability of
// 0 meets no NaN. `blocks` holds the block of each token that this thread copies.
__device__ __forceinline__ void copy_tile(uint32 tile, const PagedHead& head, const int (&blocks)[KEY_PASSES],
                                          int first_token, int end) {
#pragma unroll
  for (int pass = 0; pass < KEY_PASSES; pass++) {
    const int index = pass * ROWS_AT_ONCE + copied_row(), token = first_token + index;
    copy_cached(tile, index, head.token(blocks[pass], token), token < end);
  }
  cp_async_commit();
}

__device__ __forceinline__ void find_blocks(int (&blocks)[KEY_PASSES], const int* table, int first_token, int end) {
#pragma unroll
  for (int pass = 0; pass < KEY_PASSES; pass++) {
    const uint32 token = first_token + pass * ROWS_AT_ONCE + copied_row();
    blocks[pass] = token < end ? __ldg(table + token / BLOCK_SIZE) : 0;
  }
}

// What the warps of the same rows tell each other: a value of each of their keys' parts for a row.
using Exchange = float[PREFILL_ROWS][COLUMNS];

// x of a row, which each quad of the row's warps has of its part, becomes combine(x, y) over all parts. All of those warps call
// it, after a barrier since the call before.
template <typename Combine>
__device__ __forceinline__ void over_columns(float (&x)[MMA_ROWS][2], Exchange& exchange, int row_warp, int column, int lane,
                                             const Combine& combine) {
  if constexpr (COLUMNS > 1) {
    const auto row_of = [&](int m, int i) { return (row_warp * MMA_ROWS + m) * 16 + i * 8 + lane / 4; };
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
      for (int i = 0; i < 2; i++)
        if (lane % 4 == 0) exchange[row_of(m, i)][column] = x[m][i];
    named_barrier_sync(1 + row_warp, COLUMNS * WARP);
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const float* all = exchange[row_of(m, i)];
        x[m][i] = all[0];
#pragma unroll
        for (int other = 1; other < COLUMNS; other++) x[m][i] = combine(x[m][i], all[other]);
      }
  }
}

// Grid (query tiles of the longest row, NKV, rows); rows start at first_row of the batch. scale_log2 is the scale of
// the scores times log2(e), and that of keys; window 0 = none. Dynamic shared memory: PREFILL_ROWS rows of elements, 2·KEYS of
// cached ones, and with columns PREFILL_ROWS rows of KEYS elements and an Exchange. sinks [heads] and cap_log2 are of launches that have them.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_prefill(elem_t* __restrict__ out, const elem_t* __restrict__ qkv, const cache_t* __restrict__ keys,
                      const cache_t* __restrict__ values, const int* __restrict__ block_tables,
                      const int* __restrict__ row_slots, const int* __restrict__ cu_seqlens_q,
                      const int* __restrict__ context_lens, int qkv_heads, int first_row, int max_blocks,
                      float scale_log2, int window, float value_scale, const float* __restrict__ sinks, float cap_log2) {
  GRID_DEPENDENCY_WAIT();
  const int kv_head = blockIdx.y, num_kv_heads = gridDim.y, row = first_row + blockIdx.z;
  const int first_token = cu_seqlens_q[row], num_queries = cu_seqlens_q[row + 1] - first_token;
  const int packed_rows = num_queries * GROUP_SIZE;
  const int first_packed = (ceil_div(packed_rows, PREFILL_ROWS) - 1 - static_cast<int>(blockIdx.x)) * PREFILL_ROWS;
  if (first_packed < 0) return;
  const int context = context_lens[row], first_position = context - num_queries;
  const int lowest = first_position + first_packed / GROUP_SIZE;
  const int highest = first_position + (min(first_packed + PREFILL_ROWS, packed_rows) - 1) / GROUP_SIZE;
  const int end = highest + 1;
  // A query sees the keys that lie 0 to visible − 1 positions before it.
  const uint32 visible = window > 0 ? window : 0x80000000u;
  const float score_scale = softmax_scale(scale_log2);
  const int first_tile = window > 0 ? max(lowest - window + 1, 0) / KEYS : 0;
  const int end_tile = ceil_div(end, KEYS);

  extern __shared__ __align__(128) uint4 shared[];
  const uint32 query_tile = shared_address(shared), key_tile = query_tile + QueryTile::BYTES;
  const uint32 value_tile = key_tile + CacheTile::BYTES, probabilities = value_tile + CacheTile::BYTES;
  Exchange& exchange = *reinterpret_cast<Exchange*>(reinterpret_cast<unsigned char*>(shared) + (probabilities - query_tile) +
                                                    ProbabilityTile::BYTES);
  const int warp = threadIdx.x / WARP / COLUMNS, column = threadIdx.x / WARP % COLUMNS, lane = threadIdx.x % WARP;

  const int* table = block_tables + static_cast<int64>(row_slots[row]) * max_blocks;
  const PagedHead cached_keys(keys, kv_head, num_kv_heads, copied_piece() * CACHE_VEC);
  const PagedHead cached_values(values, kv_head, num_kv_heads, copied_piece() * CACHE_VEC);
  int blocks[KEY_PASSES];
  find_blocks(blocks, table, first_tile * KEYS, end);

#pragma unroll
  for (int pass = 0; pass < PREFILL_ROWS / ROWS_AT_ONCE; pass++) {
    const int index = pass * ROWS_AT_ONCE + copied_row(), packed = first_packed + index;
    const int token = first_token + packed / GROUP_SIZE, head = kv_head * GROUP_SIZE + packed % GROUP_SIZE;
    const elem_t* source = qkv + (static_cast<int64>(token) * qkv_heads + head) * HEAD_DIM + copied_piece() * 8;
    copy_query(query_tile, index, source, packed < packed_rows);
  }
  copy_tile(key_tile, cached_keys, blocks, first_tile * KEYS, end);

  const int own_rows = warp * MMA_ROWS * 16;
  const uint32 query_address = query_tile + own_rows * QueryTile::ROW_BYTES + QueryTile::lane_offset(lane);
  const uint32 own_probabilities = probabilities + own_rows * ProbabilityTile::ROW_BYTES;
  const uint32 keys_from = key_address(key_tile + column * WARP_KEYS * CacheTile::ROW_BYTES, lane);
  const uint32 values_from = value_address(CacheTile::skip(value_tile, column * VALUE_PIECES), lane);

  // Of the lane's packed rows (16m + r and 16m + r + 8 of its warp): running maximum of log2 scores, and its own
  // keys' part of the sum.
  float row_max[MMA_ROWS][2], row_sum[MMA_ROWS][2];
  Output output;
#pragma unroll
  for (int m = 0; m < MMA_ROWS; m++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      row_max[m][i] = -infinity();
      row_sum[m][i] = 0;
    }
#pragma unroll
    for (int n = 0; n < DIM_TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) output[m][n][i] = 0;
  }

  for (int tile = first_tile; tile < end_tile; tile++) {
    // Keys have arrived, and every warp is done with the values before.
    cp_async_wait<0>();
    __syncthreads();
    copy_tile(value_tile, cached_values, blocks, tile * KEYS, end);
    find_blocks(blocks, table, (tile + 1) * KEYS, end);
    Scores scores;
    attend_keys(scores, query_address, keys_from);
    if constexpr (IS_CAPPED) {
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++) cap_scores(scores[m][n], scale_log2, cap_log2);
    }
    // Values have arrived, and every warp is done with the keys.
    cp_async_wait<0>();
    __syncthreads();
    if (tile + 1 < end_tile) copy_tile(key_tile, cached_keys, blocks, (tile + 1) * KEYS, end);

    const bool crosses_diagonal = (tile + 1) * KEYS - 1 > lowest;
    const bool crosses_window = window > 0 && tile * KEYS <= highest - window;
    if (crosses_diagonal || crosses_window) {
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32 packed = first_packed + (warp * MMA_ROWS + m) * 16 + i / 2 * 8 + lane / 4;
          const uint32 distance = first_position + packed / GROUP_SIZE - (tile * KEYS + column * WARP_KEYS + lane % 4 * 2 + i % 2);
#pragma unroll
          for (int n = 0; n < KEY_TILES; n++)
            if (distance - n * 8 >= visible) scores[m][n][i] = -infinity();
        }
    }

    // Of a row: the maximum of its products, and what they become once the maximum of all its keys of the tile is known.
    const auto maximum = [&](int m, int i) {
      float max = -infinity();
#pragma unroll
      for (int n = 0; n < KEY_TILES; n++) max = fmaxf(max, fmaxf(scores[m][n][i * 2], scores[m][n][i * 2 + 1]));
      max = fmaxf(max, __shfl_xor_sync(FULL_MASK, max, 1));
      return fmaxf(max, __shfl_xor_sync(FULL_MASK, max, 2));
    };
    const auto soften = [&](int m, int i, float tile_max) {
      const float max = fmaxf(row_max[m][i], tile_max * score_scale);
      // A row that has seen no key yet (its window starts later) has no maximum to subtract.
      const float shift = max == -infinity() ? 0 : max;
      const float factor = exp2_approx(row_max[m][i] - shift);
      row_max[m][i] = max;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < KEY_TILES; n++) {
        scores[m][n][i * 2] = exp2_approx(scores[m][n][i * 2] * score_scale - shift);
        scores[m][n][i * 2 + 1] = exp2_approx(scores[m][n][i * 2 + 1] * score_scale - shift);
        sum += scores[m][n][i * 2] + scores[m][n][i * 2 + 1];
      }
      row_sum[m][i] = row_sum[m][i] * factor + sum;
#pragma unroll
      for (int n = 0; n < DIM_TILES; n++) output[m][n][i * 2] *= factor, output[m][n][i * 2 + 1] *= factor;
    };
    float tile_max[MMA_ROWS][2];
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        tile_max[m][i] = maximum(m, i);
        if constexpr (COLUMNS == 1) soften(m, i, tile_max[m][i]);
      }
    if constexpr (COLUMNS > 1) {
      over_columns(tile_max, exchange, warp, column, lane, [](float x, float y) { return fmaxf(x, y); });
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) soften(m, i, tile_max[m][i]);
    }
    if constexpr (COLUMNS == 1) {
      attend_values(output, values_from, [&](uint32(&a)[4], int m, int k) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float* pair = &scores[m][k * 2 + i / 2][i % 2 * 2];
          a[i] = pack_factors(pair[0], pair[1]);
        }
      });
    } else {
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
        for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
          for (int i = 0; i < 2; i++)
            store4_shared(
                own_probabilities + ProbabilityTile::offset(m * 16 + i * 8 + lane / 4, column * KEY_TILES + n) + lane % 4 * 4,
                pack_factors(scores[m][n][i * 2], scores[m][n][i * 2 + 1]));
      named_barrier_sync(1 + warp, COLUMNS * WARP);
      const uint32 from = own_probabilities + ProbabilityTile::lane_offset(lane);
      attend_values(output, values_from, [&](uint32(&a)[4], int m, int k) {
        ldmatrix_x4(a, ProbabilityTile::skip(from, k * 2) + m * 16 * ProbabilityTile::ROW_BYTES);
      });
    }
  }
  GRID_DEPENDENCY_LAUNCH();

  // Each warp gathers its rows and dimensions where its queries were, and writes them out 16 bytes a lane.
#pragma unroll
  for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      row_sum[m][i] += __shfl_xor_sync(FULL_MASK, row_sum[m][i], 1);
      row_sum[m][i] += __shfl_xor_sync(FULL_MASK, row_sum[m][i], 2);
    }
  over_columns(row_sum, exchange, warp, column, lane, [](float x, float y) { return x + y; });
  const uint32 gathered = QueryTile::skip(query_tile, column * DIM_TILES);
#pragma unroll
  for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int index = (warp * MMA_ROWS + m) * 16 + i * 8 + lane / 4;
      float sum = row_sum[m][i];
      if constexpr (HAS_SINKS)
        sum = with_sink(sum, row_max[m][i], sinks, kv_head * GROUP_SIZE + (first_packed + index) % GROUP_SIZE);
      store_results(gathered + QueryTile::offset(index, 0), output[m], i, mean_factor(sum, value_scale), lane);
    }
  __syncwarp();
  // A lane's row of 8, and its piece of 4.
#pragma unroll
  for (int rows = 0; rows < MMA_ROWS * 16; rows += 8) {
    const int index = warp * MMA_ROWS * 16 + rows + lane / 4, packed = first_packed + index;
    const int64 token = first_token + packed / GROUP_SIZE, head = kv_head * GROUP_SIZE + packed % GROUP_SIZE;
    elem_t* target = out + (token * GROUP_SIZE * num_kv_heads + head) * HEAD_DIM + column * WARP_DIMS;
    if (packed >= packed_rows) break;
#pragma unroll
    for (int piece = lane % 4; piece < DIM_TILES; piece += 4)
      store16(target + piece * 8, load16_shared(gathered + QueryTile::offset(index, piece)));
  }
}
