// attention_prefill.cu's rows and products where the cache is of elem_t.
#pragma once
#include "prefill_tiles.cuh"

// A thread's pieces of a row of a tile; source is of its first. What is not valid is not read and becomes zeros.
template <typename Tile>
__device__ __forceinline__ void copy_row(uint32 tile, int row, const elem_t* source, bool valid) {
  const uint32 target = tile + Tile::offset(row, copied_piece());
#pragma unroll
  for (int piece = 0; piece < HEAD_DIM / 8; piece += PIECE_STEP)
    cp_async16(Tile::skip(target, piece), source + piece * 8, valid);
}
__device__ __forceinline__ void copy_cached(uint32 tile, int row, const cache_t* source, bool valid) {
  copy_row<CacheTile>(tile, row, source, valid);
}
__device__ __forceinline__ void copy_query(uint32 tile, int row, const elem_t* source, bool valid) {
  copy_row<QueryTile>(tile, row, source, valid);
}

// A lane's addresses for ldmatrix: B's are 8 rows of both column halves, then the next 8 rows.
__device__ __forceinline__ uint32 key_address(uint32 keys, int lane) {
  return keys + CacheTile::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
__device__ __forceinline__ uint32 value_address(uint32 values, int lane) { return values + CacheTile::lane_offset(lane); }
// Pieces of a warp's dimensions.
constexpr uint32 VALUE_PIECES = DIM_TILES;

__device__ __forceinline__ void attend_keys(Scores& scores, uint32 query, uint32 keys) {
#pragma unroll
  for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
    for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) scores[m][n][i] = 0;
#pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++) {
    uint32 a[MMA_ROWS][4];
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++) ldmatrix_x4(a[m], QueryTile::skip(query, k * 2) + m * 16 * QueryTile::ROW_BYTES);
#pragma unroll
    for (int n = 0; n < KEY_TILES; n += 2) {
      uint32 b[4];
      ldmatrix_x4(b, CacheTile::skip(keys, k * 2) + n * 8 * CacheTile::ROW_BYTES);
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++) {
        mma_m16n8k16(scores[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        mma_m16n8k16(scores[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

// load(a, m, k): the fragment of probabilities of 16 keys.
template <typename Load>
__device__ __forceinline__ void attend_values(Output& output, uint32 values, const Load& load) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
    uint32 a[MMA_ROWS][4];
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++) load(a[m], m, k);
#pragma unroll
    for (int n = 0; n < DIM_TILES; n += 2) {
      uint32 b[4];
      ldmatrix_x4_trans(b, CacheTile::skip(values, n) + k * 16 * CacheTile::ROW_BYTES);
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++) {
        mma_m16n8k16(output[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        mma_m16n8k16(output[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

// A lane's part of a result to the row of which `row` is the first piece: rows r (half 0) or r + 8 (half 1) of 16.
__device__ __forceinline__ void store_results(uint32 row, const float (&output)[DIM_TILES][4], int half, float factor, int lane) {
#pragma unroll
  for (int n = 0; n < DIM_TILES; n++)
    store4_shared(QueryTile::skip(row, n) + lane % 4 * 4, pack2(output[n][half * 2] * factor, output[n][half * 2 + 1] * factor));
}
