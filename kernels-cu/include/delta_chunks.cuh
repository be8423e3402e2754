// The gated delta rule for rows of prompts, in chunks (see delta_net.cuh). Three kernels, one after the other, for a piece of the batch
// at a time: the tokens [begin, end), by which rows may be cut, too.
//
//   convolve        queries, keys and values from projections (delta_convolve.cu)
//   prepare_chunks  of each chunk by itself: W, U, P and G (delta_prepare_chunks.cu)
//   advance_states  from chunk to chunk: outputs before their norm, and states (delta_advance_states.cu)
//
// With S the state before a chunk, tokens s <= t of it, G_t the sum of log decays from the chunk's first token on, decays
// d(s, t) = exp(G_t - G_s) and b_t = exp(G_t) (Yang et al. 2024, the WY form):
//   M_ts = beta_t · d(s, t) · k_t·k_s for s < t        T = (I + M)⁻¹
//   W = T · (beta · b · K)      U = T · (beta · V)      P_ts = d(s, t) · q_t·k_s
//   D = U - W·S                 O = b · Q·S + P·D       S ← b_last · S + Kᵀ·(d(t, last) · D)
//
// A chunk is CHUNK tokens of a row at most and ends where a multiple of CHUNK positions does, so where it ends does not depend on how a
// prompt came.
#pragma once
#include "delta_net.cuh"

#if !defined(CHUNK) || !defined(PREFILL_THREADS)
#error "CHUNK and PREFILL_THREADS come from src/backend/cuda/ops/delta-prompts.ts"
#endif
// Warps that share the tokens of a chunk.
constexpr int WARPS = PREFILL_THREADS / WARP;
static_assert(CHUNK == 64 && WARPS * 16 == CHUNK, "each warp has 16 tokens of a chunk");

__device__ __forceinline__ int clamped(int x, int least, int most) { return min(max(x, least), most); }

// A row's part of a piece: tokens [first, end), the first of them at `position`.
struct RowPart {
  int first, end, position;
  // The row has tokens after the piece.
  bool goes_on;

  __device__ __forceinline__ RowPart(const int32* cu_seqlens, const int32* context_lens, int row, int begin, int piece_end) {
    const int start = load_coherent(cu_seqlens + row), stop = load_coherent(cu_seqlens + row + 1);
    first = clamped(start, begin, piece_end), end = clamped(stop, begin, piece_end);
    position = load_coherent(context_lens + row) - (stop - first);
    goes_on = stop > piece_end;
  }
  __device__ __forceinline__ int chunks() const { return first == end ? 0 : ceil_div(position % CHUNK + end - first, CHUNK); }
  // Tokens of a chunk.
  __device__ __forceinline__ int chunk_first(int chunk) const { return max(first, first - position % CHUNK + chunk * CHUNK); }
  __device__ __forceinline__ int chunk_end(int chunk) const { return min(end, first - position % CHUNK + (chunk + 1) * CHUNK); }
};

// The number of the first chunk of a row, the `index`th of the piece: rows have room for theirs, and for one more or two.
__device__ __forceinline__ int first_chunk_of(const int32* cu_seqlens, int row, int index, int begin, int end) {
  return (clamped(load_coherent(cu_seqlens + row), begin, end) - begin) / CHUNK + 2 * index;
}

// The last of `rows` rows from `first_row` on whose chunks begin at or before `number`.
__device__ __forceinline__ int row_of_chunk(const int32* cu_seqlens, int first_row, int rows, int begin, int end, int number) {
  int low = 0, high = rows;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (first_chunk_of(cu_seqlens, first_row + middle, middle, begin, end) <= number) low = middle;
    else high = middle;
  }
  return low;
}

// The row of a token, of `rows` rows from `first_row` on; tokens past them all are the last row's.
__device__ __forceinline__ int row_of_token(const int32* cu_seqlens, int first_row, int rows, int token) {
  int low = first_row, high = first_row + rows;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (load_coherent(cu_seqlens + middle) <= token) low = middle;
    else high = middle;
  }
  return low;
}
