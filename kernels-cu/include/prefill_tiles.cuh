// Tiles of attention_prefill.cu: how its warps and threads share them, and their rows in shared memory.
#pragma once
#include "attention.cuh"

#if !defined(PREFILL_ROWS) || !defined(PREFILL_WARPS) || !defined(PREFILL_COLUMNS) || !defined(PREFILL_KEYS)
#error "PREFILL_ROWS, PREFILL_WARPS, PREFILL_COLUMNS and PREFILL_KEYS come from src/backend/cuda/ops/prefill-attention.ts"
#endif

constexpr int WARPS = PREFILL_WARPS;
constexpr int THREADS = WARPS * WARP;
constexpr int KEYS = PREFILL_KEYS;
// Warps that share rows: each has the scores of its own part of the keys, and results of its own part of the dimensions.
constexpr int COLUMNS = PREFILL_COLUMNS;
constexpr int ROW_WARPS = WARPS / COLUMNS;
constexpr int MMA_ROWS = PREFILL_ROWS / (ROW_WARPS * 16);
constexpr int WARP_KEYS = KEYS / COLUMNS, KEY_TILES = WARP_KEYS / 8;
constexpr int WARP_DIMS = HEAD_DIM / COLUMNS, DIM_TILES = WARP_DIMS / 8;
static_assert(ROW_WARPS * COLUMNS == WARPS, "PREFILL_WARPS must be whole rows of PREFILL_COLUMNS warps");
static_assert(MMA_ROWS * ROW_WARPS * 16 == PREFILL_ROWS, "PREFILL_ROWS must be a multiple of 16 rows a warp");
static_assert(WARP_KEYS * COLUMNS == KEYS && WARP_KEYS % 16 == 0, "PREFILL_KEYS must be a multiple of 16 a column, the depth of a product");
static_assert(WARP_DIMS * COLUMNS == HEAD_DIM && WARP_DIMS % 32 == 0, "HEAD_DIM must be a multiple of 32 a column");

// Rows of 16-byte pieces in shared memory, so that the 8 rows that ldmatrix reads at a time lie on different banks, and that two rows'
// four pieces, which a quarter of a warp copies, fill at most two lines of 128 bytes: with each piece in a line of its own, though on
// different banks, heads of 128 dimensions reached 202 TFLOP/s instead of 259, those of 512 132 instead of 244. Where there is room rows are padded. Where there is none, tiles are panels of four pieces in which rows follow
// one another, and pieces are permuted by XOR with half of the row's number.
template <int TILE_ROWS, int PIECES>
struct Tile {
  static constexpr bool IS_PADDED = COLUMNS == 1;
  static constexpr uint32 PANEL_PIECES = 4, PANELS = ceil_div(PIECES, PANEL_PIECES);
  // From a row to the next, where the first is a multiple of 8.
  static constexpr uint32 ROW_BYTES = (IS_PADDED ? PIECES + 1 : PANEL_PIECES) * VECTOR_BYTES;
  static constexpr uint32 BYTES = (IS_PADDED ? 1 : PANELS) * TILE_ROWS * ROW_BYTES;

  // Byte offset of a piece of a row.
  __device__ static __forceinline__ constexpr uint32 offset(uint32 row, uint32 piece) {
    if constexpr (IS_PADDED) return row * ROW_BYTES + piece * VECTOR_BYTES;
    return (piece / PANEL_PIECES * TILE_ROWS + row) * ROW_BYTES + (piece ^ row / 2) % PANEL_PIECES * VECTOR_BYTES;
  }
  // The address `pieces` further along the row from that of a piece whose number shares no bits with `pieces`.
  __device__ static __forceinline__ uint32 skip(uint32 address, uint32 pieces) {
    if constexpr (IS_PADDED) return address + pieces * VECTOR_BYTES;
    return (address ^ pieces % PANEL_PIECES * VECTOR_BYTES) + pieces / PANEL_PIECES * TILE_ROWS * ROW_BYTES;
  }
  // A lane's part of the addresses for ldmatrix of A, or of a transposed B: 16 rows of the first piece, then of the next.
  __device__ static __forceinline__ uint32 lane_offset(int lane) { return offset(lane % 16, lane / 16); }
};
using QueryTile = Tile<PREFILL_ROWS, HEAD_DIM * 2 / VECTOR_BYTES>;
using CacheTile = Tile<KEYS, HEAD_DIM / CACHE_VEC>;
using ProbabilityTile = Tile<PREFILL_ROWS, KEYS * 2 / VECTOR_BYTES>;

// A quad copies pieces of one row, 16 bytes a lane at a time, and a warp those of 8 rows. ROWS_AT_ONCE rows are under way at
// once, each copied by ROW_QUADS quads.
constexpr int QUADS = THREADS / 4;
constexpr int ROWS_AT_ONCE = QUADS < KEYS ? QUADS : KEYS;
constexpr int ROW_QUADS = QUADS / ROWS_AT_ONCE;
constexpr int KEY_PASSES = KEYS / ROWS_AT_ONCE;
static_assert(KEYS % ROWS_AT_ONCE == 0 && PREFILL_ROWS % ROWS_AT_ONCE == 0, "every thread copies the same number of rows");
static_assert(ROW_QUADS * ROWS_AT_ONCE == QUADS && HEAD_DIM % (32 * ROW_QUADS) == 0, "every quad copies as much of a row");
// The row of a pass that this thread copies, its first piece, and how far apart its pieces are.
__device__ __forceinline__ int copied_row() { return threadIdx.x / 4 % ROWS_AT_ONCE; }
__device__ __forceinline__ int copied_piece() { return threadIdx.x / 4 / ROWS_AT_ONCE * 4 + threadIdx.x % 4; }
constexpr int PIECE_STEP = ROW_QUADS * 4;

using Scores = float[MMA_ROWS][KEY_TILES][4];
using Output = float[MMA_ROWS][DIM_TILES][4];
