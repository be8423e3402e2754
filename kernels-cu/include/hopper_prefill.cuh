// What the warps of attention_prefill_hopper.cu share: the sizes of its tiles, its shared memory with the barriers in it, and the keys
// that a tile of queries sees.
#pragma once
#include "attention.cuh"
#include "cluster.cuh"
#include "query_tiles.cuh"
#if defined(CACHE_FLOAT8)
#include "prefill_widening.cuh"
#endif

#if !defined(PREFILL_KEYS) || !defined(PREFILL_CONSUMERS) || !defined(PREFILL_STAGES) || !defined(PREFILL_CONTROL_BYTES)
#error "PREFILL_KEYS, PREFILL_CONSUMERS, PREFILL_STAGES and PREFILL_CONTROL_BYTES come from src/backend/cuda/ops/hopper-prefill.ts"
#endif
#if !defined(PREFILL_CLUSTER)
#error "PREFILL_CLUSTER comes from src/backend/cuda/ops/hopper-prefill.ts"
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
// CTAs that share query tiles, and the dimensions that each has of queries, keys and values, and computes results of.
constexpr int CLUSTER = PREFILL_CLUSTER, DIMS = HEAD_DIM / CLUSTER;
constexpr int VECTORS = DIMS / 8;
static_assert(CLUSTER == 1 || CLUSTER == 2, "a CTA exchanges scores with one other");
static_assert(DIMS * CLUSTER == HEAD_DIM && DIMS <= 256, "a warpgroup has registers for the results of 256 dimensions");
static_assert(CONSUMERS == 2, "two warpgroups take turns");
static_assert(BOX * PAGES == KEYS && BLOCK_SIZE % BOX == 0, "a tile must be whole boxes, a block too");
static_assert(DIMS % 64 == 0, "the swizzled boxes are 64 elements wide");
static_assert(BOX % 8 == 0, "a box must be whole groups of 8 rows");
static_assert(PAGES <= WARP, "each lane of the producer fetches one page of a tile");

constexpr uint32 ROW_BYTES = DIMS * 2, GROUP_BYTES = 8 * ROW_BYTES, QUERY_BYTES = ROWS * ROW_BYTES,
                 TILE_BYTES = KEYS * ROW_BYTES;
#if defined(CACHE_FLOAT8)
static_assert(CLUSTER == 1, "there is no room for codes beside scores of another CTA");
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

// Scores of the cluster's other CTA: 16 bytes a thread at a time, of each consumer.
using OtherScores = float4[KEYS / 8][CONSUMERS * WARPGROUP];

// Shared memory begins with queries [QUERY_STAGES], keys [STAGES] and values [STAGES], then codes of either [CODE_STAGES] or
// OtherScores.
struct Control {
  Ticket tickets[TICKETS];
  uint64 ticket_full[TICKETS], ticket_empty[TICKETS];
  uint64 queries_full[QUERY_STAGES], queries_empty[QUERY_STAGES];
  uint64 keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
#if defined(CACHE_FLOAT8)
  CodeBarriers codes;
#endif
  // Of a consumer's OtherScores: here they have arrived; there they have been read, so that they may be sent again.
  uint64 scores_full[CONSUMERS], scores_taken[CONSUMERS];
};
constexpr uint32 KEYS_AT = QUERY_STAGES * QUERY_BYTES, VALUES_AT = KEYS_AT + STAGES * TILE_BYTES;
constexpr uint32 REST_AT = VALUES_AT + STAGES * TILE_BYTES;
#if defined(CACHE_FLOAT8)
constexpr uint32 CONTROL_AT = REST_AT + CODE_STAGES * CODE_TILE_BYTES;
#else
constexpr uint32 CONTROL_AT = REST_AT + (CLUSTER > 1 ? sizeof(OtherScores) : 0);
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
