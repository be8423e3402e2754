// prepare_batch: the step's rows become per-token metadata.  scatter: host values into slot tables.  count_tokens: a
// slot's token counts from its history.
//
//   rows             int32 [num_rows, 3]: slot, first position, token count
//   tokens           int32 [slots, capacity]        block_tables  int32 [slots, max_blocks]
//   token_ids, positions, slot_mapping  int32 [num_tokens]
//   cu_seqlens_q     int32 [num_rows + 1]           context_lens, row_slots  int32 [num_rows]
//
// Parallelisation: prepare_batch: grid (pieces of the tokens); each block scans all rows' counts into shared memory and
// each thread finds its token's row by bisection. The launch depends on the numbers of rows and tokens alone, and decode
// is one block. scatter: a thread an entry. count_tokens: one block a slot, as clearing must precede counting.
// Why this version: one kernel instead of a scan and an expansion; the redundant scan of a few hundred rows costs less
// than a second launch. Tokens past the last row's are padding: id 0, position 0, slot −1, which stores nothing.
#include "slot.cuh"

// Exclusive sums of the rows' counts into offsets[num_rows + 1]. All threads call; offsets are ready on return.
__device__ __forceinline__ void scan_counts(int32* offsets, const int32* rows, int num_rows) {
  __shared__ int32 warp_totals[WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  int carry = 0;
  for (int base = 0; base < num_rows; base += blockDim.x) {
    const int row = base + threadIdx.x;
    int sum = row < num_rows ? rows[3 * row + 2] : 0;
    for (int offset = 1; offset < WARP; offset *= 2) {
      const int below = __shfl_up_sync(FULL_MASK, sum, offset);
      if (lane >= offset) sum += below;
    }
    if (lane == WARP - 1) warp_totals[warp] = sum;
    __syncthreads();
    int total = 0;
    for (int i = 0; i < warps; i++) {
      if (i < warp) sum += warp_totals[i];
      total += warp_totals[i];
    }
    if (row < num_rows) offsets[row + 1] = carry + sum;
    carry += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) offsets[0] = 0;
  __syncthreads();
}

extern "C" __global__ void prepare_batch(int32* __restrict__ token_ids, int32* __restrict__ positions,
                                         int32* __restrict__ slot_mapping, int32* __restrict__ cu_seqlens_q,
                                         int32* __restrict__ context_lens, int32* __restrict__ row_slots,
                                         const int32* __restrict__ rows, const int32* __restrict__ tokens,
                                         const int32* __restrict__ block_tables, int32 num_tokens, int32 num_rows,
                                         int32 capacity, int32 max_blocks, int32 block_size) {
  extern __shared__ int32 offsets[];  // [num_rows + 1]
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  scan_counts(offsets, rows, num_rows);

  for (int row = blockIdx.x * blockDim.x + threadIdx.x; row <= num_rows; row += gridDim.x * blockDim.x) {
    cu_seqlens_q[row] = offsets[row];
    if (row == num_rows) break;
    row_slots[row] = rows[3 * row];
    context_lens[row] = rows[3 * row + 1] + rows[3 * row + 2];
  }

  const int token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= num_tokens) return;
  if (token >= offsets[num_rows]) {
    token_ids[token] = 0;
    positions[token] = 0;
    slot_mapping[token] = -1;
    return;
  }
  // The row with offsets[row] <= token < offsets[row + 1].
  int row = 0;
  for (int end = num_rows; end - row > 1;) {
    const int middle = (row + end) / 2;
    if (offsets[middle] <= token)
      row = middle;
    else
      end = middle;
  }
  const int64 slot = rows[3 * row];
  const int position = rows[3 * row + 1] + token - offsets[row];
  token_ids[token] = tokens[slot * capacity + position];
  positions[token] = position;
  slot_mapping[token] = block_tables[slot * max_blocks + position / block_size] * block_size + position % block_size;
}

// target[indices[i]] = values[i]; the indices must differ.
extern "C" __global__ void scatter(uint32* __restrict__ target, const int32* __restrict__ indices,
                                   const uint32* __restrict__ values, int32 count) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) target[indices[i]] = values[i];
}

// rows int32 [grid, 3]: slot, prompt length, total length; counts uint32 [slots, vocab].
extern "C" __global__ void count_tokens(uint32* __restrict__ counts, const int32* __restrict__ tokens,
                                        const int32* __restrict__ rows, int32 capacity, int32 vocab) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int64 slot = rows[3 * blockIdx.x];
  const int prompt_len = rows[3 * blockIdx.x + 1], total_len = rows[3 * blockIdx.x + 2];
  uint32* slot_counts = counts + slot * vocab;
  for (int token = threadIdx.x; token < vocab; token += blockDim.x) slot_counts[token] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < total_len; i += blockDim.x) {
    uint32* count = slot_counts + tokens[slot * capacity + i];
    if (i < prompt_len)
      atomicOr(count, IN_PROMPT);
    else
      atomicAdd(count, 1u);
  }
}
