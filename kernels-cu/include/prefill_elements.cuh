// attention_prefill.cu's rows and products where the cache is of elem_t.
#pragma once
#include "prefill_tiles.cuh"

// Elements from a cached token's row in shared memory to the next one's.
constexpr int CACHE_STRIDE = STRIDE;

__device__ __forceinline__ void copy_row(elem_t* target, const elem_t* source, bool valid) {
  const uint32 address = shared_address(target);
#pragma unroll
  for (int i = 0; i < ROW_COPIES; i++) cp_async16(address + i * 64, source + i * 32, valid);
}
// A quad's lane copies from its first dimension on. What is not valid is not read and becomes zeros.
__device__ __forceinline__ void copy_cached(cache_t* target, const cache_t* source, bool valid) {
  copy_row(target, source, valid);
}
__device__ __forceinline__ void copy_query(elem_t* target, const elem_t* source, bool valid) {
  copy_row(target, source, valid);
}

// A lane's addresses for ldmatrix: B's are 8 rows of both column halves, then the next 8 rows; of the transposed B lanes 0..15
// of the first 8 columns, then of the next 8.
__device__ __forceinline__ uint32 key_address(const cache_t* keys, int lane) {
  return shared_address(keys + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8);
}
__device__ __forceinline__ uint32 value_address(const cache_t* values, int lane) {
  return shared_address(values + lane % 16 * STRIDE + lane / 16 * 8);
}

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
    for (int m = 0; m < MMA_ROWS; m++) ldmatrix_x4(a[m], query + (m * 16 * STRIDE + k * 16) * 2);
#pragma unroll
    for (int n = 0; n < KEY_TILES; n += 2) {
      uint32 b[4];
      ldmatrix_x4(b, keys + (n * 8 * STRIDE + k * 16) * 2);
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++) {
        mma_m16n8k16(scores[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        mma_m16n8k16(scores[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

__device__ __forceinline__ void attend_values(Output& output, const Scores& probabilities, uint32 values) {
#pragma unroll
  for (int k = 0; k < KEY_TILES; k += 2) {
    uint32 a[MMA_ROWS][4];
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        a[m][i] = pack2(probabilities[m][k + i / 2][i % 2 * 2], probabilities[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n += 2) {
      uint32 b[4];
      ldmatrix_x4_trans(b, values + (k * 8 * STRIDE + n * 8) * 2);
#pragma unroll
      for (int m = 0; m < MMA_ROWS; m++) {
        mma_m16n8k16(output[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
        mma_m16n8k16(output[m][n + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
      }
    }
  }
}

// A lane's part of a result to its row: rows r (half 0) or r + 8 (half 1) of 16.
__device__ __forceinline__ void store_results(elem_t* row, const float (&output)[HEAD_DIM / 8][4], int half, float factor,
                                              int lane) {
  elem_t* target = row + lane % 4 * 2;
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; n++)
    *reinterpret_cast<uint32*>(target + n * 8) = pack2(output[n][half * 2] * factor, output[n][half * 2 + 1] * factor);
}
