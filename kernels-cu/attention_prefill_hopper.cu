// Causal attention of rows with several query tokens over their paged context, on Hopper's asynchronous tensor cores
// (FlashAttention-3, Shah et al. 2024).
//
// Shapes: as in attention_prefill.cu. maps[0] (keys) and maps[1] (values) see a pool as [B·NKV·BS / 8, D / 64, 8, 64] (groups of 8
// rows, columns in halves), with boxes of BOX / 8 groups and the 128-byte swizzle. A cache of eight bits needs no maps.
//
// Parallelisation: a CTA an SM takes query tiles from a queue, the longest of a row first, until there are none. The g
// query heads of a KV head are packed into the tile's ROWS rows (packed row m is head m % g of token m / g), so that each
// key is read once for all of them. In a CTA one warp asks for tiles and fetches their keys and values page by page with
// the copy engine, STAGES tiles ahead; three warps fetch the next tile's queries; two warpgroups own 64 packed rows each. A
// warpgroup multiplies the next keys while its last probabilities meet their values, and the two take turns at the tensor
// cores, so that one's softmax hides behind the other's products. Where the cache has eight bits, pages are copied as they are, and
// the three warps widen them into the tiles that are multiplied. Of heads too wide for a warpgroup's results the two CTAs of a
// cluster take the same tiles, each half of the dimensions of queries, keys and values: they exchange scores, 16 KiB a warpgroup and
// tile, through distributed shared memory. There is no queue then, as both must come to the same tiles.
//
// Why this version: mma.sync reaches about 60% of what wgmma does, and its operands pass through registers. A persistent
// CTA fetches the next tile during the last one's end, which a CTA for each tile waits for. A page's keys are one copy of
// whole rows: with a copy for each 64 columns, pages of 16 tokens cost a sixth of the speed.
//
// Measured on an H100 (D 128, 16 query and 8 KV heads, pages of 16, causal): 380, 627, 587 and 615 TFLOP/s for one prompt of
// 2k, 8k, 16k and 32k tokens; attention_prefill.cu in the same run 147, 264, 324 and 316, cuDNN in another 315, 561, 568 and
// 598. D 512, 32 query and 4 KV heads: 343 for 2k, 453 for 8k; attention_prefill.cu 244 for 8k.
#include "hopper_prefill_fetch.cuh"

using Scores = float[KEYS / 2];
using Output = float[DIMS / 2];
using Probabilities = uint32[KEYS / 4];

// scores [64, KEYS] = queries · keysᵀ, enqueued.
__device__ __forceinline__ void multiply_keys(Scores& scores, uint32 queries, uint32 keys) {
#pragma unroll
  for (int k = 0; k < DIMS / 16; k++) {
    const uint32 at = k / 4 * 1024 + k % 4 * 32;
    wgmma_shared(scores, matrix_descriptor(queries + at, GROUP_BYTES), matrix_descriptor(keys + at, GROUP_BYTES), k > 0);
  }
}

// output [64, D] (+)= probabilities · values, enqueued.
__device__ __forceinline__ void multiply_values(Output& output, const Probabilities& probabilities, uint32 values,
                                                bool accumulate) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++)
    wgmma_registers(output, &probabilities[k * 4], matrix_descriptor(values + k * 2 * GROUP_BYTES, GROUP_BYTES),
                    k > 0 || accumulate);
}

// A warpgroup: its 64 rows of each ticket.
__device__ __forceinline__ void consume(unsigned char* memory, Control& control, elem_t* out, int num_kv_heads,
                                        float scale_log2, int window, float value_scale, const float* sinks,
                                        float cap_log2, int warpgroup, int part) {
  const uint32 shared = shared_address(memory);
  const int thread = threadIdx.x % WARPGROUP, warp = thread / WARP, lane = thread % WARP;
  // A query sees the keys that lie 0 to visible − 1 positions before it.
  const uint32 visible = window > 0 ? window : 0x80000000u;
  const float score_scale = softmax_scale(scale_log2);
  const auto release = [&](uint64& barrier) {
    if (lane == 0) barrier_arrive(shared_address(&barrier));
  };
  RingPosition<TICKETS> hand;
  RingPosition<QUERY_STAGES> query_ring;
  RingPosition<STAGES> key_ring, value_ring;
  // The last warpgroup lets the first one begin.
  if (warpgroup == CONSUMERS - 1) named_barrier_arrive(TURN, 2 * WARPGROUP);
  const auto take_turn = [&] { named_barrier_sync(TURN + warpgroup, 2 * WARPGROUP); };
  const auto give_turn = [&] { named_barrier_arrive(TURN + 1 - warpgroup, 2 * WARPGROUP); };
  uint32 exchanges = 0;

  for (;;) {
    barrier_wait(shared_address(&control.ticket_full[hand.stage]), hand.phase);
    const Ticket ticket = control.tickets[hand.stage];
    __syncwarp();
    release(control.ticket_empty[hand.stage]);
    hand.advance();
    if (ticket.packed_rows == 0) break;
    const Span span(ticket, window);
    const uint32 queries = shared + query_ring.stage * QUERY_BYTES + warpgroup * 64 * ROW_BYTES;
    // Rows 16·warp + lane / 4 (+ 8) of the warpgroup: running maximum of log2 scores, and this lane's part of the sum.
    float row_max[2] = {-infinity(), -infinity()}, row_sum[2] = {0, 0}, factor[2];
    Output output;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) output[i] = 0;
    wgmma_pin(output);
    Scores scores;
    Probabilities probabilities;

    const int first_m = ticket.first_packed + warpgroup * 64 + warp * 16 + lane / 4;
    const int first_position = ticket.context - ticket.num_queries;
    const int position[2] = {first_position + first_m / GROUP_SIZE, first_position + (first_m + 8) / GROUP_SIZE};
    const auto mask = [&](int tile) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32 distance = position[i] - (tile * KEYS + lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int j = 0; j < 2; j++)
            if (distance - (n * 8 + j) >= visible) scores[n * 4 + i * 2 + j] = -infinity();
      }
    };
    // Scores become probabilities, not yet divided by their sum; older results must be multiplied by the factors.
    const auto softmax = [&] {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float most = -infinity();
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) most = fmaxf(most, fmaxf(scores[n * 4 + i * 2], scores[n * 4 + i * 2 + 1]));
        most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 2));
        most = fmaxf(row_max[i], most * score_scale);
        // A row that has seen no key yet has no maximum to subtract.
        const float shift = most == -infinity() ? 0 : most;
        factor[i] = exp2_approx(row_max[i] - shift);
        row_max[i] = most;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
          for (int j = 0; j < 2; j++) {
            float& score = scores[n * 4 + i * 2 + j];
            score = exp2_approx(score * score_scale - shift);
            sum += score;
          }
        row_sum[i] = row_sum[i] * factor[i] + sum;
      }
    };
    // Products of this CTA's dimensions become those of all: each sends its own to the other, and adds what it gets, so that
    // both have the same.
    const auto add_other_scores = [&] {
      if constexpr (CLUSTER > 1) {
        const uint32 full = shared_address(&control.scores_full[warpgroup]), taken = shared_address(&control.scores_taken[warpgroup]);
        const uint32 there = address_in_rank(shared, part ^ 1), own = REST_AT + threadIdx.x * VECTOR_BYTES;
        constexpr uint32 STEP = CONSUMERS * WARPGROUP * VECTOR_BYTES;
        const uint32 phase = exchanges++ % 2;
        if (thread == 0) barrier_expect(full, KEYS / 8 * WARPGROUP * VECTOR_BYTES);
        barrier_wait_cluster(taken, phase ^ 1);
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++)
          store_rank(there + own + i * STEP, make_float4(scores[i * 4], scores[i * 4 + 1], scores[i * 4 + 2], scores[i * 4 + 3]),
                     there + (full - shared));
        barrier_wait_cluster(full, phase);
#pragma unroll
        for (int i = 0; i < KEYS / 8; i++) {
          const float4 other = *reinterpret_cast<const float4*>(memory + own + i * STEP);
          scores[i * 4] += other.x, scores[i * 4 + 1] += other.y, scores[i * 4 + 2] += other.z, scores[i * 4 + 3] += other.w;
        }
        __syncwarp();
        if (lane == 0) barrier_arrive_there(there + (taken - shared));
      }
    };
    const auto pack_probabilities = [&] {
#pragma unroll
      for (int k = 0; k < KEYS / 4; k++) probabilities[k] = pack_factors(scores[k * 2], scores[k * 2 + 1]);
    };
    // One tile: its scores, and the values of the tile before.
    const auto step = [&](int tile, bool accumulate, bool masked) {
      barrier_wait(shared_address(&control.keys_full[key_ring.stage]), key_ring.phase);
      take_turn();
      wgmma_fence();
      multiply_keys(scores, queries, shared + KEYS_AT + key_ring.stage * TILE_BYTES);
      wgmma_commit();
      barrier_wait(shared_address(&control.values_full[value_ring.stage]), value_ring.phase);
      wgmma_fence();
      multiply_values(output, probabilities, shared + VALUES_AT + value_ring.stage * TILE_BYTES, accumulate);
      wgmma_commit();
      give_turn();
      wgmma_wait<1>(scores);
      release(control.keys_empty[key_ring.stage]);
      key_ring.advance();
      add_other_scores();
      cap_scores(scores, scale_log2, cap_log2);
      if (masked) mask(tile);
      softmax();
      wgmma_wait<0>(output);
      release(control.values_empty[value_ring.stage]);
      value_ring.advance();
      pack_probabilities();
#pragma unroll
      for (int n = 0; n < VECTORS; n++)
#pragma unroll
        for (int j = 0; j < 4; j++) output[n * 4 + j] *= factor[j / 2];
      wgmma_pin(output);
    };

    barrier_wait(shared_address(&control.queries_full[query_ring.stage]), query_ring.phase);
    barrier_wait(shared_address(&control.keys_full[key_ring.stage]), key_ring.phase);
    take_turn();
    wgmma_fence();
    multiply_keys(scores, queries, shared + KEYS_AT + key_ring.stage * TILE_BYTES);
    wgmma_commit();
    give_turn();
    wgmma_wait<0>(scores);
    release(control.keys_empty[key_ring.stage]);
    key_ring.advance();
    add_other_scores();
    cap_scores(scores, scale_log2, cap_log2);
    mask(span.end_tile - 1);
    softmax();
    pack_probabilities();
    // Values of tokens that do not exist meet a probability of 0: they must be numbers.
    const int tail = (span.highest + 1) % KEYS;
    if (tail != 0) {
      barrier_wait(shared_address(&control.values_full[value_ring.stage]), value_ring.phase);
      for (int i = tail * VECTORS + thread; i < KEYS * VECTORS; i += WARPGROUP)
        store16(memory + VALUES_AT + value_ring.stage * TILE_BYTES + matrix_offset(i / VECTORS, i % VECTORS, GROUP_BYTES),
                make_uint4(0, 0, 0, 0));
      async_proxy_fence();
      named_barrier_sync(VALUES_CLEARED + warpgroup, WARPGROUP);
    }

    bool accumulate = false;
    int tile = span.end_tile - 2;
    for (; tile >= span.first_tile && (tile + 1) * KEYS - 1 > span.lowest; tile--) step(tile, accumulate, true), accumulate = true;
    const int windowed = window > 0 ? (span.highest - window) / KEYS : -1;
    for (; tile >= span.first_tile && tile > windowed; tile--) step(tile, accumulate, false), accumulate = true;
    for (; tile >= span.first_tile; tile--) step(tile, accumulate, true), accumulate = true;
    barrier_wait(shared_address(&control.values_full[value_ring.stage]), value_ring.phase);
    wgmma_fence();
    multiply_values(output, probabilities, shared + VALUES_AT + value_ring.stage * TILE_BYTES, accumulate);
    wgmma_commit();
    wgmma_wait<0>(output);
    release(control.values_empty[value_ring.stage]);
    value_ring.advance();

    // Each warp gathers its rows where its queries were, and writes them out 16 bytes a lane.
    unsigned char* gathered = memory + query_ring.stage * QUERY_BYTES;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float sum = row_sum[i];
      sum += __shfl_xor_sync(FULL_MASK, sum, 1);
      sum += __shfl_xor_sync(FULL_MASK, sum, 2);
      sum = with_sink(sum, row_max[i], sinks, ticket.kv_head * GROUP_SIZE + (first_m + i * 8) % GROUP_SIZE);
      const float factor = mean_factor(sum, value_scale);
      const int m = warpgroup * 64 + warp * 16 + i * 8 + lane / 4;
#pragma unroll
      for (int n = 0; n < VECTORS; n++)
        *reinterpret_cast<uint32*>(gathered + matrix_offset(m, n, GROUP_BYTES) + lane % 4 * 4) =
            pack2(output[n * 4 + i * 2] * factor, output[n * 4 + i * 2 + 1] * factor);
    }
    __syncwarp();
    for (int i = lane; i < 16 * VECTORS; i += WARP) {
      const int m = warpgroup * 64 + warp * 16 + i / VECTORS, column = i % VECTORS, packed = ticket.first_packed + m;
      if (packed >= ticket.packed_rows) break;
      const int64 token = ticket.first_token + packed / GROUP_SIZE, head = ticket.kv_head * GROUP_SIZE + packed % GROUP_SIZE;
      store16(out + (token * GROUP_SIZE * num_kv_heads + head) * HEAD_DIM + part * DIMS + column * 8,
              load16(gathered + matrix_offset(m, column, GROUP_BYTES)));
    }
    __syncwarp();
    release(control.queries_empty[query_ring.stage]);
    query_ring.advance();
  }
}

// Grid: at most one CTA an SM, and whole clusters. Rows first_row .. first_row + num_rows − 1 of the batch. `queue` [2] is zeros between
// launches. scale_log2 is the scale of the scores times log2(e), and that of keys; window 0 = none. Dynamic shared memory:
// CONTROL_AT + PREFILL_CONTROL_BYTES. keys, values and value_scale are of a cache of eight bits, maps of any other; sinks [heads]
// and cap_log2 of launches that have them.
extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    attention_prefill_hopper(elem_t* __restrict__ out, const elem_t* __restrict__ qkv,
                             const TensorMap* __restrict__ maps, const int* __restrict__ block_tables,
                             const int* __restrict__ row_slots, const int* __restrict__ cu_seqlens_q,
                             const int* __restrict__ context_lens, uint32* __restrict__ queue, int qkv_heads, int num_kv_heads,
                             int first_row, int num_rows, int max_blocks, float scale_log2, int window,
                             const cache_t* __restrict__ keys, const cache_t* __restrict__ values, float value_scale,
                             const float* __restrict__ sinks, float cap_log2) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic + CONTROL_AT);
  if (threadIdx.x == 0) {
    const auto init = [](uint64& barrier, int arrivals) { barrier_init(shared_address(&barrier), arrivals); };
    for (int i = 0; i < TICKETS; i++)
      init(control.ticket_full[i], 1), init(control.ticket_empty[i], CONSUMERS * 4 + HELPER_WARPS);
    for (int i = 0; i < QUERY_STAGES; i++)
      init(control.queries_full[i], HELPER_WARPS), init(control.queries_empty[i], CONSUMERS * 4);
    for (int i = 0; i < STAGES; i++) {
      init(control.keys_full[i], TILE_WRITERS), init(control.keys_empty[i], CONSUMERS * 4);
      init(control.values_full[i], TILE_WRITERS), init(control.values_empty[i], CONSUMERS * 4);
    }
    if (CLUSTER > 1)
      for (int i = 0; i < CONSUMERS; i++) init(control.scores_full[i], 1), init(control.scores_taken[i], 4);
#if defined(CACHE_FLOAT8)
    for (int i = 0; i < CODE_STAGES; i++) init(control.codes.full[i], 1), init(control.codes.empty[i], HELPER_WARPS);
#endif
    barrier_init_fence();
  }
  __syncthreads();
  // Of the other CTA, too, before it is sent anything.
  if constexpr (CLUSTER > 1) cluster_arrive_relaxed(), cluster_wait();
  GRID_DEPENDENCY_WAIT();

  const int part = CLUSTER > 1 ? cluster_rank() : 0;
  const int warpgroup = threadIdx.x / WARPGROUP;
  if (warpgroup == CONSUMERS) {
    release_registers<FETCH_REGISTERS>();
    const int warp = threadIdx.x / WARP % 4;
    if (warp == 0) {
      const TileFinder<ROWS> finder = {cu_seqlens_q, context_lens, row_slots, first_row, num_rows, num_kv_heads};
#if defined(CACHE_FLOAT8)
      const Pool *key_pool = keys, *value_pool = values;
#else
      const Pool *key_pool = maps, *value_pool = maps + 1;
#endif
      produce(key_pool, value_pool, shared_address(dynamic), control, block_tables, max_blocks, finder, queue, window, part);
    } else {
      help(shared_address(dynamic), control, qkv, qkv_heads, window, threadIdx.x - (CONSUMERS * 4 + 1) * WARP, part);
    }
  } else {
    acquire_registers<MULTIPLY_REGISTERS>();
    consume(dynamic, control, out, num_kv_heads, scale_log2, window, value_scale, sinks, cap_log2, warpgroup, part);
  }
  // Its shared memory must be there as long as the other CTA may reach it.
  if constexpr (CLUSTER > 1) cluster_arrive(), cluster_wait();
}
