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

// A tile in shared memory is made of 8 × 8 matrices of 16-bit elements, 128 bytes each, with the rows after one another: what
// ldmatrix reads at a time lies on different banks. The matrices of 8 rows, a row's 16-byte pieces, follow one another, then
// those of the next 8 rows. A row's place in a matrix is permuted by XOR, so that pieces of a quad lie on different banks, too.
constexpr uint32 MATRIX_BYTES = 128;
constexpr uint32 QUERY_ROW_BYTES = HEAD_DIM * 2, CACHE_ROW_BYTES = HEAD_DIM * static_cast<uint32>(sizeof(cache_t));
__device__ __forceinline__ constexpr uint32 place_of(uint32 piece) { return piece % 4 * 2 * VECTOR_BYTES; }
// Byte offset of a piece of a row.
__device__ __forceinline__ constexpr uint32 piece_offset(uint32 row, uint32 piece, uint32 row_bytes) {
  return row / 8 * 8 * row_bytes + piece * MATRIX_BYTES + (row % 8 * VECTOR_BYTES ^ place_of(piece));
}
// The address `pieces` further along rows from that of a piece of which `pieces` is no part: pieces 0 and 1 of a multiple of 2, or
// piece 0.
__device__ __forceinline__ uint32 skip_pieces(uint32 address, uint32 pieces) {
  return (address ^ place_of(pieces)) + pieces * MATRIX_BYTES;
}
// A lane's part of the addresses for ldmatrix of A, or of a transposed B: 16 rows of the first piece, then of the next.
__device__ __forceinline__ uint32 lane_offset(int lane, uint32 row_bytes) { return piece_offset(lane % 16, lane / 16, row_bytes); }

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
