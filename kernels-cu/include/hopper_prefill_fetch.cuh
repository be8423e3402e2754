// The warps of attention_prefill_hopper.cu that fetch: one hands out tickets and copies keys and values, HELPER_WARPS copy queries, and
// widen what is cached in eight bits.
#pragma once
#include "hopper_prefill.cuh"
#include "tensor_map.cuh"

// Where keys or values are copied from.
#if defined(CACHE_FLOAT8)
using Pool = cache_t;
#else
using Pool = TensorMap;
#endif

// `part`: the CTA's number in its cluster, and of its dimensions.
__device__ __forceinline__ void fetch_tile(const Pool* pool, uint32 target, uint64& full, int pool_row, int pages, int lane,
                                           int part) {
  const uint32 barrier = shared_address(&full);
  if (lane == 0) barrier_expect(barrier, pages * BOX_BYTES);
  __syncwarp();
#if defined(CACHE_FLOAT8)
  if (lane < pages)
    copy_bytes(target + lane * BOX_BYTES, pool + static_cast<int64>(pool_row) * HEAD_DIM, BOX_BYTES, barrier);
#else
  if (lane < pages) copy_columns(target + lane * BOX_BYTES, pool, barrier, part * (DIMS / 64), pool_row / 8);
#endif
}

// One warp: takes tickets, hands them on, and fetches their keys and values from the last tile to the first: the diagonal
// comes first, so that only the first tiles mask.
__device__ __forceinline__ void produce(const Pool* key_pool, const Pool* value_pool, uint32 shared,
                                        Control& control, const int* block_tables, int max_blocks, TileFinder<ROWS> finder,
                                        uint32* queue, int window, int part) {
  const int lane = threadIdx.x % WARP;
#if defined(CACHE_FLOAT8)
  RingPosition<CODE_STAGES> codes;
#else
  tensor_map_fence(key_pool);
  tensor_map_fence(value_pool);
  RingPosition<STAGES> keys, values;
#endif
  RingPosition<TICKETS> hand;
  int number = blockIdx.x / CLUSTER, round = 0;
  for (;;) {
    const Ticket ticket = finder.find(number, lane);
    barrier_wait(shared_address(&control.ticket_empty[hand.stage]), hand.phase ^ 1);
    if (lane == 0) {
      control.tickets[hand.stage] = ticket;
      barrier_arrive(shared_address(&control.ticket_full[hand.stage]));
    }
    hand.advance();
    if (ticket.packed_rows == 0) break;
    int next = 0;
    if constexpr (CLUSTER == 1) {
      if (lane == 0) next = gridDim.x + atomicAdd(queue, 1);
    } else {
      // Both CTAs must come to the same: clusters take turns, every other time in the opposite order, as tiles become shorter.
      const int clusters = gridDim.x / CLUSTER, own = blockIdx.x / CLUSTER;
      round++;
      next = round * clusters + (round % 2 == 0 ? own : clusters - 1 - own);
    }

    const Span span(ticket, window);
    const int* table = block_tables + static_cast<int64>(ticket.slot) * max_blocks;
    const auto pool_row_of = [&](int tile) {
      const int token = tile * KEYS + lane * BOX;
      if (lane >= PAGES || token > span.highest) return 0;
      return (__ldg(table + token / BLOCK_SIZE) * finder.num_kv_heads + ticket.kv_head) * BLOCK_SIZE +
             token % BLOCK_SIZE;
    };
    const auto pages_of = [&](int tile) { return min(ceil_div(span.highest + 1 - tile * KEYS, BOX), PAGES); };
#if defined(CACHE_FLOAT8)
    const auto fetch_codes = [&](const Pool* pool, int pool_row, int pages) {
      barrier_wait(shared_address(&control.codes.empty[codes.stage]), codes.phase ^ 1);
      fetch_tile(pool, shared + REST_AT + codes.stage * CODE_TILE_BYTES, control.codes.full[codes.stage], pool_row, pages,
                 lane, part);
      codes.advance();
    };
    const auto fetch_keys = [&](int pool_row, int pages) { fetch_codes(key_pool, pool_row, pages); };
    const auto fetch_values = [&](int pool_row, int pages) { fetch_codes(value_pool, pool_row, pages); };
#else
    const auto fetch_values = [&](int pool_row, int pages) {
      barrier_wait(shared_address(&control.values_empty[values.stage]), values.phase ^ 1);
      fetch_tile(value_pool, shared + VALUES_AT + values.stage * TILE_BYTES, control.values_full[values.stage], pool_row,
                 pages, lane, part);
      values.advance();
    };
    const auto fetch_keys = [&](int pool_row, int pages) {
      barrier_wait(shared_address(&control.keys_empty[keys.stage]), keys.phase ^ 1);
      fetch_tile(key_pool, shared + KEYS_AT + keys.stage * TILE_BYTES, control.keys_full[keys.stage], pool_row, pages,
                 lane, part);
      keys.advance();
    };
#endif
    int pool_row = pool_row_of(span.end_tile - 1), previous_row = 0, previous_pages = 0;
    for (int tile = span.end_tile - 1; tile >= span.first_tile; tile--) {
      const int pages = pages_of(tile), next_row = tile > span.first_tile ? pool_row_of(tile - 1) : 0;
      fetch_keys(pool_row, pages);
      if (previous_pages > 0) fetch_values(previous_row, previous_pages);
      previous_row = pool_row, previous_pages = pages, pool_row = next_row;
    }
    fetch_values(previous_row, previous_pages);
    number = __shfl_sync(FULL_MASK, next, 0);
  }
  // The last CTA leaves the queue as it found it.
  if (CLUSTER == 1 && lane == 0 && atomicInc(queue + 1, gridDim.x - 1) == gridDim.x - 1) *queue = 0;
}

// HELPER_WARPS warps: the packed query rows of each ticket; rows that do not exist are zeros. Then its keys and values, where those
// are copied as codes.
__device__ __forceinline__ void help(uint32 shared, Control& control, const elem_t* qkv, int qkv_heads, int window,
                                     int thread, int part) {
  RingPosition<TICKETS> hand;
  RingPosition<QUERY_STAGES> ring;
#if defined(CACHE_FLOAT8)
  RingPosition<CODE_STAGES> codes;
  // Tiles so far.
  uint32 keys = 0, values = 0;
  const auto widen = [&](uint32 target, uint32 full, uint32 empty, uint32 phase) {
    const uint32 code_barriers = shared_address(&control.codes.full[codes.stage]);
    barrier_wait(code_barriers, codes.phase);
    barrier_wait(empty, phase ^ 1);
    widen_tile<KEYS, HELPER_WARPS>(target, shared + REST_AT + codes.stage * CODE_TILE_BYTES, GROUP_BYTES, thread / WARP,
                                   thread % WARP);
    // Also before the copy engine writes where codes were read.
    async_proxy_fence();
    __syncwarp();
    if (threadIdx.x % WARP == 0) {
      barrier_arrive(code_barriers + static_cast<uint32>(sizeof(control.codes.full)));
      barrier_arrive(full);
    }
    codes.advance();
  };
#endif
  for (;;) {
    barrier_wait(shared_address(&control.ticket_full[hand.stage]), hand.phase);
    const Ticket ticket = control.tickets[hand.stage];
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(shared_address(&control.ticket_empty[hand.stage]));
    hand.advance();
    if (ticket.packed_rows == 0) break;
    barrier_wait(shared_address(&control.queries_empty[ring.stage]), ring.phase ^ 1);
    const uint32 target = shared + ring.stage * QUERY_BYTES;
    for (int i = thread; i < ROWS * VECTORS; i += HELPER_WARPS * WARP) {
      const int m = i / VECTORS, column = i % VECTORS, packed = ticket.first_packed + m;
      const int64 token = ticket.first_token + packed / GROUP_SIZE, head = ticket.kv_head * GROUP_SIZE + packed % GROUP_SIZE;
      const bool exists = packed < ticket.packed_rows;
      const elem_t* source = qkv + (token * qkv_heads + head) * HEAD_DIM + part * DIMS + column * 8;
      cp_async16(target + matrix_offset(m, column, GROUP_BYTES), exists ? source : qkv, exists);
    }
    cp_async_commit();
    cp_async_wait<0>();
#if defined(CACHE_FLOAT8) && defined(DTYPE_BF16)
    pack_queries<ROWS, HELPER_WARPS * WARP>(target, GROUP_BYTES, thread);
#endif
    async_proxy_fence();
    __syncwarp();
    if (threadIdx.x % WARP == 0) barrier_arrive(shared_address(&control.queries_full[ring.stage]));
    ring.advance();
#if defined(CACHE_FLOAT8)
    // In the order in which they are copied: the values of a tile follow the keys of the next.
    const Span span(ticket, window);
    const int last = 2 * (span.end_tile - span.first_tile) - 1;
#pragma unroll 1
    for (int i = 0; i <= last; i++) {
      const bool is_values = i == last || (i > 0 && i % 2 == 0);
      const uint32 tiles = is_values ? values++ : keys++, stage = tiles % STAGES;
      const uint32 full = shared_address(is_values ? control.values_full : control.keys_full) + stage * 8;
      widen(shared + (is_values ? VALUES_AT : KEYS_AT) + stage * TILE_BYTES, full, full + STAGES * 8, tiles / STAGES % 2);
    }
#endif
  }
}
