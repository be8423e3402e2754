// Rows of a ragged batch cut into chunks, for kernels that take a piece of the batch at a time: the tokens [begin, end), by which rows
// may be cut, too. A chunk is CHUNK tokens of a row at most and ends where a multiple of CHUNK positions does, so where it ends does not
// depend on how a prompt came.
#pragma once
#include "delta_net.cuh"

#if !defined(CHUNK)
#error "CHUNK comes from src/backend/cuda/ops/delta-net.ts"
#endif
static_assert(CHUNK == 64, "warps take 16 tokens of a chunk each");

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
