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
// the three warps widen them into the tiles that are multiplied.
//
// Why this version: mma.sync reaches about 60% of what wgmma does, and its operands pass through registers. A persistent
// CTA fetches the next tile during the last one's end, which a CTA for each tile waits for. A page's keys are one copy of
// whole rows: with a copy for each 64 columns, pages of 16 tokens cost a sixth of the speed.
//
// Measured on an H100 (D 128, 16 query and 8 KV heads, pages of 16, causal): 380, 627, 587 and 615 TFLOP/s for one prompt of
// 2k, 8k, 16k and 32k tokens; attention_prefill.cu in the same run 147, 264, 324 and 316, cuDNN in another 315, 561, 568 and
// 598.
#include "attention.cuh"
#include "hopper.cuh"
#include "query_tiles.cuh"
#include "tensor_map.cuh"
#if defined(CACHE_FLOAT8)
#include "prefill_widening.cuh"
#endif

#if !defined(PREFILL_KEYS) || !defined(PREFILL_CONSUMERS) || !defined(PREFILL_STAGES) || !defined(PREFILL_CONTROL_BYTES)
#error "PREFILL_KEYS, PREFILL_CONSUMERS, PREFILL_STAGES and PREFILL_CONTROL_BYTES come from src/backend/cuda/ops/hopper-prefill.ts"
#endif

constexpr int CONSUMERS = PREFILL_CONSUMERS;
constexpr int WARPGROUP = 4 * WARP;
constexpr int ROWS = CONSUMERS * 64;
constexpr int KEYS = PREFILL_KEYS;
constexpr int STAGES = PREFILL_STAGES;
constexpr int QUERY_STAGES = PREFILL_QUERY_STAGES;
constexpr int TICKETS = 2;
constexpr int BOX = PREFILL_BOX;
constexpr int PAGES = KEYS / BOX;
constexpr int HELPER_WARPS = 3;
constexpr int VECTORS = HEAD_DIM / 8;
static_assert(CONSUMERS == 2, "two warpgroups take turns");
static_assert(BOX * PAGES == KEYS && BLOCK_SIZE % BOX == 0, "a tile must be whole boxes, a block too");
static_assert(HEAD_DIM % 64 == 0, "the swizzled boxes are 64 elements wide");
static_assert(BOX % 8 == 0, "a box must be whole groups of 8 rows");
static_assert(PAGES <= WARP, "each lane of the producer fetches one page of a tile");

constexpr uint32 ROW_BYTES = HEAD_DIM * 2, GROUP_BYTES = 8 * ROW_BYTES, QUERY_BYTES = ROWS * ROW_BYTES,
                 TILE_BYTES = KEYS * ROW_BYTES;
#if defined(CACHE_FLOAT8)
constexpr uint32 CODE_TILE_BYTES = KEYS * HEAD_DIM, BOX_BYTES = BOX * HEAD_DIM;
// Whoever fills a tile of keys or values.
constexpr int TILE_WRITERS = HELPER_WARPS;
#else
constexpr uint32 BOX_BYTES = BOX * ROW_BYTES;
constexpr int TILE_WRITERS = 1;
#endif

// Registers of a thread that fetches, and of one that multiplies: together what a kernel of 168 registers has.
#if defined(CACHE_FLOAT8)
constexpr bool WIDENS = HEAD_DIM <= 128;
#else
constexpr bool WIDENS = false;
#endif
constexpr int FETCH_REGISTERS = WIDENS ? 56 : 40, MULTIPLY_REGISTERS = WIDENS ? 224 : 232;

// Named barriers, one for each consumer; 0 is __syncthreads.
enum NamedBarrier : int { TURN = 1, VALUES_CLEARED = TURN + CONSUMERS };

// Shared memory begins with queries [QUERY_STAGES], keys [STAGES] and values [STAGES], and codes of either [CODE_STAGES].
struct Control {
  Ticket tickets[TICKETS];
  uint64 ticket_full[TICKETS], ticket_empty[TICKETS];
  uint64 queries_full[QUERY_STAGES], queries_empty[QUERY_STAGES];
  uint64 keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
#if defined(CACHE_FLOAT8)
  CodeBarriers codes;
#endif
};
constexpr uint32 KEYS_AT = QUERY_STAGES * QUERY_BYTES, VALUES_AT = KEYS_AT + STAGES * TILE_BYTES;
#if defined(CACHE_FLOAT8)
constexpr uint32 CODES_AT = VALUES_AT + STAGES * TILE_BYTES, CONTROL_AT = CODES_AT + CODE_STAGES * CODE_TILE_BYTES;
#else
constexpr uint32 CONTROL_AT = VALUES_AT + STAGES * TILE_BYTES;
#endif
static_assert(sizeof(Control) <= PREFILL_CONTROL_BYTES, "the host must ask for room for Control");

// The tiles of keys that a query tile sees, and the first and last position of its queries.
struct Span {
  int lowest, highest, first_tile, end_tile;
  __device__ __forceinline__ Span(const Ticket& ticket, int window) {
    const int first_position = ticket.context - ticket.num_queries;
    lowest = first_position + ticket.first_packed / GROUP_SIZE;
    highest = first_position + (min(ticket.first_packed + ROWS, ticket.packed_rows) - 1) / GROUP_SIZE;
    first_tile = window > 0 ? max(lowest - window + 1, 0) / KEYS : 0;
    end_tile = ceil_div(highest + 1, KEYS);
  }
};

// Where keys or values are copied from.
#if defined(CACHE_FLOAT8)
using Pool = cache_t;
#else
using Pool = TensorMap;
#endif

__device__ __forceinline__ void fetch_tile(const Pool* pool, uint32 target, uint64& full, int pool_row, int pages, int lane) {
  const uint32 barrier = shared_address(&full);
  if (lane == 0) barrier_expect(barrier, pages * BOX_BYTES);
  __syncwarp();
#if defined(CACHE_FLOAT8)
  if (lane < pages)
    copy_bytes(target + lane * BOX_BYTES, pool + static_cast<int64>(pool_row) * HEAD_DIM, BOX_BYTES, barrier);
#else
  if (lane < pages) copy_box<4>(target + lane * BOX_BYTES, pool, barrier, 0, pool_row / 8);
#endif
}

// One warp: takes tickets, hands them on, and fetches their keys and values from the last tile to the first: the diagonal
// comes first, so that only the first tiles mask.
__device__ __forceinline__ void produce(const Pool* key_pool, const Pool* value_pool, uint32 shared,
                                        Control& control, const int* block_tables, int max_blocks, TileFinder<ROWS> finder,
                                        uint32* queue, int window) {
  const int lane = threadIdx.x % WARP;
#if defined(CACHE_FLOAT8)
  RingPosition<CODE_STAGES> codes;
#else
  tensor_map_fence(key_pool);
  tensor_map_fence(value_pool);
  RingPosition<STAGES> keys, values;
#endif
  RingPosition<TICKETS> hand;
  int number = blockIdx.x;
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
    if (lane == 0) next = gridDim.x + atomicAdd(queue, 1);

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
      fetch_tile(pool, shared + CODES_AT + codes.stage * CODE_TILE_BYTES, control.codes.full[codes.stage], pool_row, pages,
                 lane);
      codes.advance();
    };
    const auto fetch_keys = [&](int pool_row, int pages) { fetch_codes(key_pool, pool_row, pages); };
    const auto fetch_values = [&](int pool_row, int pages) { fetch_codes(value_pool, pool_row, pages); };
#else
    const auto fetch_values = [&](int pool_row, int pages) {
      barrier_wait(shared_address(&control.values_empty[values.stage]), values.phase ^ 1);
      fetch_tile(value_pool, shared + VALUES_AT + values.stage * TILE_BYTES, control.values_full[values.stage], pool_row,
                 pages, lane);
      values.advance();
    };
    const auto fetch_keys = [&](int pool_row, int pages) {
      barrier_wait(shared_address(&control.keys_empty[keys.stage]), keys.phase ^ 1);
      fetch_tile(key_pool, shared + KEYS_AT + keys.stage * TILE_BYTES, control.keys_full[keys.stage], pool_row, pages,
                 lane);
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
  if (lane == 0 && atomicInc(queue + 1, gridDim.x - 1) == gridDim.x - 1) *queue = 0;
}

// HELPER_WARPS warps: the packed query rows of each ticket; rows that do not exist are zeros. Then its keys and values, where those
// are copied as codes.
__device__ __forceinline__ void help(uint32 shared, Control& control, const elem_t* qkv, int num_kv_heads, int window,
                                     int thread) {
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
    widen_tile<KEYS, HELPER_WARPS>(target, shared + CODES_AT + codes.stage * CODE_TILE_BYTES, GROUP_BYTES, thread / WARP,
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
      const elem_t* source = qkv + (token * (GROUP_SIZE + 2) * num_kv_heads + head) * HEAD_DIM + column * 8;
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

using Scores = float[KEYS / 2];
using Output = float[HEAD_DIM / 2];
using Probabilities = uint32[KEYS / 4];

// scores [64, KEYS] = queries · keysᵀ, enqueued.
__device__ __forceinline__ void multiply_keys(Scores& scores, uint32 queries, uint32 keys) {
#pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++) {
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
                                        float cap_log2, int warpgroup) {
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
      cap_scores(scores, scale_log2, cap_log2);
      if (masked) mask(tile);
      softmax();
      wgmma_wait<0>(output);
      release(control.values_empty[value_ring.stage]);
      value_ring.advance();
      pack_probabilities();
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++)
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
      for (int n = 0; n < HEAD_DIM / 8; n++)
        *reinterpret_cast<uint32*>(gathered + matrix_offset(m, n, GROUP_BYTES) + lane % 4 * 4) =
            pack2(output[n * 4 + i * 2] * factor, output[n * 4 + i * 2 + 1] * factor);
    }
    __syncwarp();
    for (int i = lane; i < 16 * VECTORS; i += WARP) {
      const int m = warpgroup * 64 + warp * 16 + i / VECTORS, column = i % VECTORS, packed = ticket.first_packed + m;
      if (packed >= ticket.packed_rows) break;
      const int64 token = ticket.first_token + packed / GROUP_SIZE, head = ticket.kv_head * GROUP_SIZE + packed % GROUP_SIZE;
      store16(out + (token * GROUP_SIZE * num_kv_heads + head) * HEAD_DIM + column * 8,
              load16(gathered + matrix_offset(m, column, GROUP_BYTES)));
    }
    __syncwarp();
    release(control.queries_empty[query_ring.stage]);
    query_ring.advance();
  }
}

// Grid: at most one CTA an SM. Rows first_row .. first_row + num_rows − 1 of the batch. `queue` [2] is zeros between
// launches. scale_log2 is the scale of the scores times log2(e), and that of keys; window 0 = none. Dynamic shared memory:
// CONTROL_AT + PREFILL_CONTROL_BYTES. keys, values and value_scale are of a cache of eight bits, maps of any other; sinks [heads]
// and cap_log2 of launches that have them.
extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    attention_prefill_hopper(elem_t* __restrict__ out, const elem_t* __restrict__ qkv,
                             const TensorMap* __restrict__ maps, const int* __restrict__ block_tables,
                             const int* __restrict__ row_slots, const int* __restrict__ cu_seqlens_q,
                             const int* __restrict__ context_lens, uint32* __restrict__ queue, int num_kv_heads,
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
#if defined(CACHE_FLOAT8)
    for (int i = 0; i < CODE_STAGES; i++) init(control.codes.full[i], 1), init(control.codes.empty[i], HELPER_WARPS);
#endif
    barrier_init_fence();
  }
  __syncthreads();
  GRID_DEPENDENCY_WAIT();

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
      produce(key_pool, value_pool, shared_address(dynamic), control, block_tables, max_blocks, finder, queue, window);
    } else {
      help(shared_address(dynamic), control, qkv, num_kv_heads, window, threadIdx.x - (CONSUMERS * 4 + 1) * WARP);
    }
  } else {
    acquire_registers<MULTIPLY_REGISTERS>();
    consume(dynamic, control, out, num_kv_heads, scale_log2, window, value_scale, sinks, cap_log2, warpgroup);
  }
}
