// join_slots: sequences take slots.  prepare_batch: the step's rows become metadata, and their slots advance.  scatter:
// host values into slot tables.
//
//   rows             int32 [num_rows, ROW_WORDS]    joins  int32 [grid, JOIN_WORDS]
//   tokens           int32 [slots, capacity]        lengths, num_computed  int32 [slots]
//   block_tables     int32 [slots, max_blocks]      counts uint32 [slots, vocab]
//   token_ids, positions, slot_mapping  int32 [num_tokens]
//   cu_seqlens_q     int32 [num_rows + 1]           context_lens, row_slots  int32 [num_rows]
//   sample_slots, sample_positions, sample_tokens  int32 [samples]: at the index that a row says
//
// Parallelisation: prepare_batch: one block, so that no thread reads where a slot starts after another has advanced it; it
// scans all rows' counts into shared memory, and each thread finds its tokens' rows by bisection. The launch depends on
// the numbers of rows and tokens alone. scatter: a thread an entry. join_slots: one block a slot, as clearing its counts
// must precede counting.
// Why this version: one kernel instead of a scan, an expansion and an update. A step of 16384 tokens gives each thread 16,
// which is nothing beside the layers of such a step; a decode step gives it one.
// Tokens past the last row's are padding: id 0, position 0, slot mapping −1, where nothing is stored.
#include "slot.cuh"

#if !defined(ROW_WORDS) || !defined(JOIN_WORDS)
#error "ROW_WORDS, ROW_WORD_…, JOIN_WORDS and JOIN_WORD_… come from src/backend/cuda/ops/slot-layout.ts"
#endif
#if !defined(PREPARE_THREADS)
#error "PREPARE_THREADS comes from src/backend/cuda/ops/batch.ts"
#endif

// A row to compute, of rows int32 [num_rows, ROW_WORDS].
struct Row {
  int32 slot, count, sample;
};
__device__ __forceinline__ Row load_row(const int32* rows, int row) {
  const int32* words = rows + row * ROW_WORDS;
  return {words[ROW_WORD_SLOT], words[ROW_WORD_COUNT], words[ROW_WORD_SAMPLE]};
}

// Exclusive sums of the rows' counts into offsets[num_rows + 1]. All threads call; offsets are ready on return.
__device__ __forceinline__ void scan_counts(int32* offsets, const int32* rows, int num_rows) {
  __shared__ int32 warp_totals[WARP];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
  int carry = 0;
  for (int base = 0; base < num_rows; base += blockDim.x) {
    const int row = base + threadIdx.x;
    int sum = row < num_rows ? load_row(rows, row).count : 0;
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

extern "C" __global__ void join_slots(int32* __restrict__ lengths, int32* __restrict__ num_computed,
                                      uint32* __restrict__ counts, const int32* __restrict__ tokens,
                                      const uint32* __restrict__ params, const int32* __restrict__ joins,
                                      int32 capacity, int32 vocab) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int32* join = joins + blockIdx.x * JOIN_WORDS;
  const int64 slot = join[JOIN_WORD_SLOT];
  const int32 prompt_length = join[JOIN_WORD_PROMPT_LENGTH], length = join[JOIN_WORD_LENGTH];
  if (threadIdx.x == 0) {
    lengths[slot] = length;
    num_computed[slot] = join[JOIN_WORD_NUM_COMPUTED_TOKENS];
  }
  if (!(load_slot_params(params, slot).flags & PENALTIES)) return;
  uint32* slot_counts = counts + slot * vocab;
  for (int token = threadIdx.x; token < vocab; token += blockDim.x) slot_counts[token] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < length; i += blockDim.x) {
    uint32* count = slot_counts + tokens[slot * capacity + i];
    if (i < prompt_length)
      atomicOr(count, IN_PROMPT);
    else
      atomicAdd(count, 1u);
  }
}

extern "C" __global__ void __launch_bounds__(PREPARE_THREADS)
    prepare_batch(int32* __restrict__ token_ids, int32* __restrict__ positions, int32* __restrict__ slot_mapping,
                  int32* __restrict__ cu_seqlens_q, int32* __restrict__ context_lens, int32* __restrict__ row_slots,
                  int32* __restrict__ sample_slots, int32* __restrict__ sample_positions,
                  int32* __restrict__ sample_tokens, int32* __restrict__ num_computed, const int32* __restrict__ rows,
                  const int32* __restrict__ tokens, const int32* __restrict__ lengths,
                  const int32* __restrict__ block_tables, int32 num_tokens, int32 num_rows, int32 capacity,
                  int32 max_blocks, int32 block_size) {
  extern __shared__ int32 shared[];
  int32* offsets = shared;                // [num_rows + 1]
  int32* starts = shared + num_rows + 1;  // [num_rows]
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  scan_counts(offsets, rows, num_rows);

  for (int i = threadIdx.x; i < num_rows; i += blockDim.x) {
    const Row row = load_row(rows, i);
    const int start = num_computed[row.slot], end = start + row.count;
    starts[i] = start;
    cu_seqlens_q[i] = offsets[i];
    row_slots[i] = row.slot;
    context_lens[i] = end;
    if (row.sample >= 0) {
      sample_slots[row.sample] = row.slot;
      sample_positions[row.sample] = end - 1;
      sample_tokens[row.sample] = offsets[i + 1] - 1;
    }
    // Only a vacant slot has several rows, and it stays where it is.
    if (lengths[row.slot] > 0) num_computed[row.slot] = end;
  }
  if (threadIdx.x == 0) cu_seqlens_q[num_rows] = offsets[num_rows];
  __syncthreads();

  for (int token = threadIdx.x; token < num_tokens; token += blockDim.x) {
    if (token >= offsets[num_rows]) {
      token_ids[token] = 0;
      positions[token] = 0;
      slot_mapping[token] = -1;
      continue;
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
    const int64 slot = load_row(rows, row).slot;
    const int position = starts[row] + token - offsets[row];
    token_ids[token] = tokens[slot * capacity + position];
    positions[token] = position;
    slot_mapping[token] = block_tables[slot * max_blocks + position / block_size] * block_size + position % block_size;
  }
}

// target[indices[i]] = values[i]; the indices must differ.
extern "C" __global__ void scatter(uint32* __restrict__ target, const int32* __restrict__ indices,
                                   const uint32* __restrict__ values, int32 count) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) target[indices[i]] = values[i];
}
