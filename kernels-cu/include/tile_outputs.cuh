// What becomes of a tile's sums: outputs of linear_wgmma.cu and linear_quantised_wgmma.cu, by the threads that multiply.
#pragma once
#include "activation.cuh"
#include "linear_tile.cuh"

#if !defined(GATED) || !defined(ACTIVATION) || !defined(OUT_FLOAT) || !defined(MIN_CTAS) || \
    !defined(LINEAR_SHARED_BYTES)
#error "GATED, ACTIVATION, OUT_FLOAT, MIN_CTAS and LINEAR_SHARED_BYTES come from src/backend/cuda/ops/wgmma-linear.ts"
#endif

// Outputs of a tile, and of a warp's 16 rows.
constexpr int OUT_ROWS = GATED ? ROWS / 2 : ROWS, WARP_ROWS = GATED ? 8 : 16;
// Outputs leave through shared memory, those of a token together. Where splits share a tile, each has few of them, and the
// barrier costs more than it brings.
constexpr bool STAGED = SPLITS == 1 && !OUT_FLOAT;
// The residual of wide tiles, for which there are no registers while they are multiplied, is fetched to where outputs are staged.
constexpr bool RESIDUAL_STAGED = STAGED && !GATED && TOKENS > 128;

#if OUT_FLOAT
using out_t = float;
#else
using out_t = elem_t;
// Words of packed outputs of a block that a thread holds, and blocks whose words make 16 bytes.
constexpr int WORDS = GATED ? 1 : 2, WORD_BLOCKS = 4 / WORDS, WORD_GROUPS = ceil_div(OWN_BLOCKS, WORD_BLOCKS);
#endif

struct Shared : TileShared {
  // Padded so that neighbouring tokens' eight rows are on different banks.
  alignas(16) unsigned char staged[STAGED ? OWN_BLOCKS * 8 : 1][OUT_ROWS * 2 + 16];
};
static_assert(sizeof(Shared) <= LINEAR_SHARED_BYTES, "the host must ask for room for Shared");

__device__ __forceinline__ uint32 load4_coherent(const elem_t* p) {
  uint32 word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory");
  return word;
}

// Lane c of a quad gets word c of lanes 0 to 3.
__device__ __forceinline__ uint4 transpose_quad(const uint32 (&word)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32 first = __shfl_xor_sync(FULL_MASK, odd ? word[0] : word[1], 1);
  const uint32 second = __shfl_xor_sync(FULL_MASK, odd ? word[2] : word[3], 1);
  const uint32 a = odd ? first : word[0], b = odd ? word[1] : first, c = odd ? second : word[2], d = odd ? word[3] : second;
  const uint32 third = __shfl_xor_sync(FULL_MASK, high ? a : c, 2), fourth = __shfl_xor_sync(FULL_MASK, high ? b : d, 2);
  return make_uint4(high ? third : a, high ? fourth : b, high ? c : third, high ? d : fourth);
}

// A warpgroup's part of a tile's outputs. A thread holds, of its i-th block, y[i]: row r of its warp's 16 for tokens 2c and
// 2c + 1, then row r + 8, where r = lane / 4 and c = lane % 4. With GATED, row r + 8 is what row r gates.
struct Outputs {
  out_t* out;
  const elem_t *bias, *residual;
  int tokens, outputs;
  // First token of the tile, split that this CTA is, first output of the tile.
  int token0, split, row0;

  __device__ __forceinline__ int warp_row() const { return row0 + static_cast<int>(threadIdx.x) / WARP * WARP_ROWS; }
  __device__ __forceinline__ bool has(int i) const { return i < OWN_BLOCKS && i * SPLITS + split < BLOCKS; }
  // First token of the i-th block.
  __device__ __forceinline__ int first_token(int i) const { return token0 + (i * SPLITS + split) * 8; }
  __device__ __forceinline__ int64 index(int token, int row) const { return static_cast<int64>(token) * outputs + row; }

  // Of rows r and r + 8, or of what they are with GATED.
  __device__ __forceinline__ void load_bias(float (&offset)[2]) const {
    if (!bias) return;
    const int row = warp_row() + static_cast<int>(threadIdx.x) % WARP / 4;
    offset[0] = to_float(bias[row]), offset[1] = to_float(bias[row + (GATED ? outputs : 8)]);
  }

  // As memory has it: token r, rows 2c and 2c + 1, then 8 rows further.
  __device__ __forceinline__ void load_residual(uint32 (&added)[OWN_BLOCKS][2]) const {
    if (GATED || OUT_FLOAT || RESIDUAL_STAGED || !residual) return;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i++) {
      const int token = first_token(i) + lane / 4;
      const elem_t* from = residual + index(token, warp_row() + lane % 4 * 2);
      if (has(i) && token < tokens) added[i][0] = load4_coherent(from), added[i][1] = load4_coherent(from + 8);
    }
  }

#if OUT_FLOAT
  __device__ __forceinline__ void store(const float (&y)[OWN_BLOCKS][4]) const {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int token = first_token(i) + lane % 4 * 2 + j % 2;
        if (has(i) && token < tokens) out[index(token, warp_row() + lane / 4 + j / 2 * 8)] = y[i][j];
      }
  }
#else
  static constexpr int PIECES = OUT_ROWS / VEC;
  // The place of a matrix of 8 tokens and 8 rows, whose token lane % 8 is this lane's.
  __device__ __forceinline__ static uint32 staged_at(Shared& shared, int block, int half) {
    const int warp = threadIdx.x / WARP;
    return shared_address(shared.staged[block * 8 + threadIdx.x % 8] + (warp * WORDS + half) * 16);
  }

  // With RESIDUAL_STAGED, before the product; earlier outputs may still be read from there if `again`. Then after it.
  __device__ __forceinline__ void fetch_residual(Shared& shared, bool again) const {
    if (!RESIDUAL_STAGED || !residual) return;
    if (again) named_barrier_sync(1, CONSUMERS);
    for (int j = threadIdx.x; j < OWN_BLOCKS * 8 * PIECES; j += CONSUMERS) {
      const int row = j / PIECES, piece = j % PIECES, token = first_token(row / 8) + row % 8;
      cp_async16(shared_address(shared.staged[row] + piece * 16), residual + index(token, row0 + piece * VEC), token < tokens);
    }
    cp_async_commit();
  }
  __device__ __forceinline__ void wait_residual() const {
    if (!RESIDUAL_STAGED || !residual) return;
    cp_async_wait<0>();
    named_barrier_sync(1, CONSUMERS);
  }

  // Activation, residual, rounding: words of two tokens of a row.
  __device__ __forceinline__ void finish(Shared& shared, uint32 (&word)[WORD_GROUPS][4], float (&y)[OWN_BLOCKS][4],
                                         uint32 (&added)[OWN_BLOCKS][2]) const {
    if (!GATED && !RESIDUAL_STAGED && residual)
#pragma unroll
      for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) added[i][half] = transpose_8x8(added[i][half]);
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i++) {
#if GATED
#pragma unroll
      for (int j = 0; j < 2; j++) y[i][j] = activate(y[i][j], ACTIVATION) * y[i][j + 2];
      word[i / 4][i % 4] = pack2(y[i][0], y[i][1]);
#else
      if constexpr (RESIDUAL_STAGED)
        if (i % 2 == 0 && residual) {
          const int matrix = threadIdx.x % WARP / 8;
          uint32 pair[4];
          ldmatrix_x4_trans(pair, staged_at(shared, i + matrix / 2, matrix % 2));
#pragma unroll
          for (int j = 0; j < 4; j++) added[i + j / 2][j % 2] = pair[j];
        }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float first = y[i][half * 2], second = y[i][half * 2 + 1], low, high;
#if ACTIVATION >= 0
        first = activate(first, ACTIVATION), second = activate(second, ACTIVATION);
#endif
        unpack2(added[i][half], low, high);
        word[i / 2][i % 2 * 2 + half] = pack2(first + low, second + high);
      }
#endif
    }
  }

  // Each thread stores eight outputs of a token, of block c, or c / 2, of four or two.
  __device__ __forceinline__ void store(uint32 (&word)[WORD_GROUPS][4]) const {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int group = 0; group < WORD_GROUPS; group++)
#pragma unroll
      for (int j = 0; j < 4; j++) word[group][j] = transpose_8x8(word[group][j]);
#pragma unroll
    for (int group = 0; group < WORD_GROUPS; group++) {
      const uint4 rows = transpose_quad(word[group]);
      const int i = group * WORD_BLOCKS + lane % 4 / WORDS, token = first_token(i) + lane / 4;
      if (has(i) && token < tokens) store16(out + index(token, warp_row() + lane % WORDS * 8), rows);
    }
  }

  // The same through shared memory, which earlier outputs may still be read from if `again`, unless the residual is there.
  __device__ __forceinline__ void store_staged(Shared& shared, const uint32 (&word)[WORD_GROUPS][4], bool again) const {
    const int lane = threadIdx.x % WARP;
    if (again && !(RESIDUAL_STAGED && residual)) named_barrier_sync(1, CONSUMERS);
#pragma unroll
    for (int first = 0; first < OWN_BLOCKS; first += WORD_BLOCKS) {
      const int matrix = lane / 8;
      if (first + WORD_BLOCKS <= OWN_BLOCKS)
        stmatrix_x4_trans(staged_at(shared, first + matrix / WORDS, matrix % WORDS), word[first / WORD_BLOCKS]);
      else
#pragma unroll
        for (int j = 0; j < (OWN_BLOCKS - first) * WORDS; j++)
          stmatrix_trans(staged_at(shared, first + j / WORDS, j % WORDS), word[first / WORD_BLOCKS][j]);
    }
    named_barrier_sync(1, CONSUMERS);
#pragma unroll
    for (int j = threadIdx.x; j < OWN_BLOCKS * 8 * PIECES; j += CONSUMERS) {
      const int row = j / PIECES, piece = j % PIECES, token = first_token(row / 8) + row % 8;
      if (token < tokens) store16(out + index(token, row0 + piece * VEC), load16(shared.staged[row] + piece * 16));
    }
  }
#endif
};
