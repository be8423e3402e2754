// attention_prefill.cu's rows and products where the cache is of float8_e4m3.
//
// Codes stay codes in shared memory; ldmatrix takes two for a 16-bit element. A row of a key's matrix is then 16 dimensions, and a
// lane gets 4c .. 4c + 3 of them, which are the pairs of one product if queries are stored in that order. A transposed matrix of
// values gives a lane two dimensions of two tokens, which belong to the products of the even and of the odd dimensions.
#pragma once
#include "prefill_tiles.cuh"

// 16-byte pieces of a cached token.
constexpr int CODE_PIECES = HEAD_DIM / 16;

// A thread's pieces of a row of a tile; source is of its first. What is not valid is not read and becomes zeros.
__device__ __forceinline__ void copy_cached(uint32 tile, int row, const cache_t* source, bool valid) {
  const uint32 target = tile + CacheTile::offset(row, copied_piece());
#pragma unroll
  for (int piece = 0; piece < CODE_PIECES; piece += PIECE_STEP)
    if (CODE_PIECES % PIECE_STEP == 0 || piece + copied_piece() < CODE_PIECES)
      cp_async16(CacheTile::skip(target, piece), source + piece * CACHE_VEC, valid);
}
// Of every 16 dimensions pair 2i goes to place i, pair 2i + 1 to place 4 + i. A thread's pieces are one half of 16 each; half of a
// piece's pairs go to the first piece of the two, half to the second.
__device__ __forceinline__ void copy_query(uint32 tile, int row, const elem_t* source, bool valid) {
  const int first = copied_piece() / 2 * 2, half = copied_piece() % 2;
  const uint32 even = tile + QueryTile::offset(row, first) + half * 8;
  const uint32 odd = tile + QueryTile::offset(row, first + 1) + half * 8;
  constexpr int PIECES = HEAD_DIM / 8 / PIECE_STEP;
  uint4 pairs[PIECES];
#pragma unroll
  for (int i = 0; i < PIECES; i++) pairs[i] = valid ? load16_coherent(source + i * PIECE_STEP * 8) : make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < PIECES; i++) {
    store8_shared(QueryTile::skip(even, i * PIECE_STEP), make_uint2(pack_query(pairs[i].x), pack_query(pairs[i].z)));
    store8_shared(QueryTile::skip(odd, i * PIECE_STEP), make_uint2(pack_query(pairs[i].y), pack_query(pairs[i].w)));
  }
}

// A lane's addresses for ldmatrix. Keys: 8 rows a matrix, the next 8 and so on; with 16 keys a warp two pieces of them.
constexpr int KEY_PIECES = KEY_TILES % 4 == 0 ? 1 : 2, KEY_MATRICES = 4 / KEY_PIECES;
__device__ __forceinline__ uint32 key_address(uint32 keys, int lane) {
  return keys + CacheTile::offset(lane / 8 % KEY_MATRICES * 8 + lane % 8, lane / 8 / KEY_MATRICES);
}
// Values: rows 0..15 of 16 dimensions, then of the next 16.
__device__ __forceinline__ uint32 value_address(uint32 values, int lane) { return values + CacheTile::lane_offset(lane); }
// Pieces of a warp's dimensions.
constexpr uint32 VALUE_PIECES = DIM_TILES / 2;

__device__ __forceinline__ void attend_keys(Scores& scores, uint32 query, uint32 keys) {
#pragma unroll
  for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
    for (int n = 0; n < KEY_TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) scores[m][n][i] = 0;
#pragma unroll
  for (int k = 0; k < CODE_PIECES; k += KEY_PIECES) {
    uint32 a[KEY_PIECES][MMA_ROWS][4];
#pragma unroll
    for (int j = 0; j < KEY_PIECES; j++)
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++)
        ldmatrix_x4(a[j][m], QueryTile::skip(query, (k + j) * 2) + m * 16 * QueryTile::ROW_BYTES);
#pragma unroll
    for (int n = 0; n < KEY_TILES; n += KEY_MATRICES) {
      uint32 codes[4];
      ldmatrix_x4(codes, CacheTile::skip(keys, k) + n * 8 * CacheTile::ROW_BYTES);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32 b0, b1;
        unpack_float8x4(codes[i], b0, b1);
#pragma unroll
        for (int m = 0; m < MMA_ROWS; m++) {
          const uint32(&x)[4] = a[i / KEY_MATRICES][m];
          mma_m16n8k16_f16(scores[m][n + i % KEY_MATRICES], x[0], x[1], x[2], x[3], b0, b1);
        }
      }
    }
  }
}

// output[2i] has the even dimensions of 16, output[2i + 1] the odd ones. load(a, m, k): the fragment of probabilities of 16 keys.
template <typename Load>
__device__ __forceinline__ void attend_values(Output& output, uint32 values, const Load& load) {
#pragma unroll
  for (int k = 0; k < KEYS / 16; k++) {
    uint32 a[MMA_ROWS][4];
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++) load(a[m], m, k);
#pragma unroll
    for (int n = 0; n < DIM_TILES; n += 4) {
      uint32 codes[4];
      ldmatrix_x4_trans(codes, CacheTile::skip(values, n / 2) + k * 16 * CacheTile::ROW_BYTES);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32 even[2], odd[2];
#pragma unroll
        for (int j = 0; j < 2; j++) unpack_float8x4(__byte_perm(codes[i * 2 + j], 0, 0x3120), even[j], odd[j]);
#pragma unroll
        for (int m = 0; m < MMA_ROWS; m++) {
          mma_m16n8k16_f16(output[m][n + i * 2], a[m][0], a[m][1], a[m][2], a[m][3], even[0], even[1]);
          mma_m16n8k16_f16(output[m][n + i * 2 + 1], a[m][0], a[m][1], a[m][2], a[m][3], odd[0], odd[1]);
        }
      }
    }
  }
}

// A lane's part of a result to the row of which `row` is the first piece: rows r (half 0) or r + 8 (half 1) of 16.
__device__ __forceinline__ void store_results(uint32 row, const float (&output)[DIM_TILES][4], int half, float factor, int lane) {
  const uint32 target = QueryTile::skip(row, lane % 4 / 2) + lane % 2 * 8;
#pragma unroll
  for (int n = 0; n < DIM_TILES; n += 2) {
    const float *even = &output[n][half * 2], *odd = &output[n + 1][half * 2];
    store8_shared(QueryTile::skip(target, n),
                  make_uint2(pack2(even[0] * factor, odd[0] * factor), pack2(even[1] * factor, odd[1] * factor)));
  }
}
