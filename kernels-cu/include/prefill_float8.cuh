// attention_prefill.cu's rows and products where the cache is of float8_e4m3.
//
// Codes stay codes in shared memory; ldmatrix takes two for a 16-bit element. A row of a key's matrix is then 16 dimensions, and a
// lane gets 4c .. 4c + 3 of them, which are the pairs of one product if queries are stored in that order. A transposed matrix of
// values gives a lane two dimensions of two tokens, which belong to the products of the even and of the odd dimensions.
#pragma once
#include "prefill_tiles.cuh"

#if !defined(CODE_PADDING)
#error "CODE_PADDING comes from src/backend/cuda/ops/prefill-attention.ts"
#endif
static_assert(CODE_PADDING % CACHE_VEC == 0, "CODE_PADDING must keep rows aligned to 16-byte vectors");
static_assert(KEY_TILES % 4 == 0, "four matrices of keys are loaded at once");

// Elements from a cached token's row in shared memory to the next one's.
constexpr int CACHE_STRIDE = HEAD_DIM + CODE_PADDING;

// A quad's lane copies from its first dimension on. What is not valid is not read and becomes zeros.
__device__ __forceinline__ void copy_cached(cache_t* target, const cache_t* source, bool valid) {
  const uint32 address = shared_address(target);
#pragma unroll
  for (int i = 0; i < ceil_div(HEAD_DIM, 64); i++)
    if (HEAD_DIM % 64 == 0 || i * 64 + threadIdx.x % 4 * CACHE_VEC < HEAD_DIM)
      cp_async16(address + i * 64, source + i * 64, valid);
}
// Of every 16 dimensions pair 2i goes to place i, pair 2i + 1 to place 4 + i. target, source: the lane's eight of every 32.
__device__ __forceinline__ void copy_query(elem_t* target, const elem_t* source, bool valid) {
  // The lane's eight dimensions are the first or the second of 16.
  elem_t* place = target - threadIdx.x % 2 * 4;
  uint4 pairs[ROW_COPIES];
#pragma unroll
  for (int i = 0; i < ROW_COPIES; i++) pairs[i] = valid ? load16_coherent(source + i * 32) : make_uint4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < ROW_COPIES; i++) {
    *reinterpret_cast<uint2*>(place + i * 32) = make_uint2(pack_query(pairs[i].x), pack_query(pairs[i].z));
    *reinterpret_cast<uint2*>(place + i * 32 + 8) = make_uint2(pack_query(pairs[i].y), pack_query(pairs[i].w));
  }
}

// A lane's addresses for ldmatrix: rows of keys; rows of values 0..15 of 16 dimensions, then of the next 16.
__device__ __forceinline__ uint32 key_address(const cache_t* keys, int lane) {
  return shared_address(keys + lane * CACHE_STRIDE);
}
__device__ __forceinline__ uint32 value_address(const cache_t* values, int lane) {
  return shared_address(values + lane % 16 * CACHE_STRIDE + lane / 16 * 16);
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
    for (int n = 0; n < KEY_TILES; n += 4) {
      uint32 codes[4];
      ldmatrix_x4(codes, keys + n * 8 * CACHE_STRIDE + k * 16);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32 b0, b1;
        unpack_float8x4(codes[i], b0, b1);
#pragma unroll
        for (int m = 0; m < MMA_ROWS; m++)
          mma_m16n8k16_f16(scores[m][n + i], a[m][0], a[m][1], a[m][2], a[m][3], b0, b1);
      }
    }
  }
}

// output[2i] has the even dimensions of 16, output[2i + 1] the odd ones.
__device__ __forceinline__ void attend_values(Output& output, const Scores& probabilities, uint32 values) {
#pragma unroll
  for (int k = 0; k < KEY_TILES; k += 2) {
    uint32 a[MMA_ROWS][4];
#pragma unroll
    for (int m = 0; m < MMA_ROWS; m++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        a[m][i] = pack_factors(probabilities[m][k + i / 2][i % 2 * 2], probabilities[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n += 4) {
      uint32 codes[4];
      ldmatrix_x4_trans(codes, values + k * 8 * CACHE_STRIDE + n * 8);
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

// A lane's part of a result to its row: rows r (half 0) or r + 8 (half 1) of 16.
__device__ __forceinline__ void store_results(elem_t* row, const float (&output)[HEAD_DIM / 8][4], int half, float factor,
                                              int lane) {
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; n += 2) {
    const float *even = &output[n][half * 2], *odd = &output[n + 1][half * 2];
    *reinterpret_cast<uint2*>(row + n * 8 + lane % 4 * 4) =
        make_uint2(pack2(even[0] * factor, odd[0] * factor), pack2(even[1] * factor, odd[1] * factor));
  }
}
