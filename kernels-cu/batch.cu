// join_slots: sequences take slots.  prepare_batch: the step's rows become metadata, and their slots advance.  scatter:
// host values into slot tables.  post: a step's results go to the host.
//
//   inbox            int32 [areas, area_words]: an area begins with int32 [num_rows, row_words]   outbox the same, of results
//   steps            uint32 [1]: steps begun; step s has area s mod areas, a power of two
//   joins            int32 [grid, JOIN_WORDS]
//   tokens           int32 [slots, capacity]        lengths, num_computed  int32 [slots]
//   block_tables     int32 [groups, slots, max_blocks]   counts uint32 [slots, vocab]
//   token_ids, positions  int32 [num_tokens]        slot_mappings  int32 [groups, mapping_stride], num_tokens of each row
//   cu_seqlens_q     int32 [num_rows + 1]           context_lens, row_slots  int32 [num_rows]
//   sample_slots, sample_positions, sample_tokens  int32 [samples]: at the index that a row says
//
// Inbox and outbox lie in the host's memory. A load from there takes over a microsecond, so prepare_batch has all of them
// under way at once, and a store ends with the kernel, when the host may read.
//
// Parallelisation: prepare_batch: one block, so that no thread reads where a slot starts after another has advanced it; it
// scans all rows' counts in shared memory, and each thread finds its tokens' rows by bisection. A token has a thread for each
// group, so that none waits for one block table after another. The launch depends on the numbers of rows and tokens alone.
// scatter, post: a thread an entry. join_slots: one block a slot, as clearing its counts must precede counting.
// Why this version: one kernel instead of a copy from the host, a scan, an expansion and an update. A copy ahead of the
// kernel costs more than the step's whole pause: the GPU changes to a copy engine and back. A step of 16384 tokens gives
// each thread 16, which is nothing beside the layers of such a step; a decode step gives it one.
// Tokens past the last row's are padding: id 0, position 0, slot mappings −1, where nothing is stored.
// A record has ROW_WORD_BLOCK words and then a block for each group of layers, so that one group's is as short as it can be.
#include "scan.cuh"
#include "slot.cuh"

#if !defined(ROW_WORD_BLOCK) || !defined(JOIN_WORDS)
#error "ROW_WORD_…, JOIN_WORDS and JOIN_WORD_… come from src/backend/cuda/ops/slot-layout.ts"
#endif
#if !defined(PREPARE_THREADS)
#error "PREPARE_THREADS comes from src/backend/cuda/ops/batch.ts"
#endif

// A step's area of inbox or outbox.
template <typename T>
__device__ __forceinline__ T* area_of(T* areas_start, uint32 step, int areas, int area_words) {
  return areas_start + static_cast<int64>(step & (areas - 1)) * area_words;
}

__device__ __forceinline__ int32 load_from_host(const int32* p) {
  int32 word;
  asm volatile("ld.relaxed.sys.global.s32 %0, [%1];" : "=r"(word) : "l"(p));
  return word;
}

// Copies `count` words of the host's memory. All threads call; the copy is complete after the next barrier.
__device__ __forceinline__ void copy_from_host(int32* target, const int32* source, int count) {
  constexpr int IN_FLIGHT = 8;
  for (int base = threadIdx.x; base < count; base += IN_FLIGHT * blockDim.x) {
    int32 words[IN_FLIGHT];
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      const int at = base + i * blockDim.x;
      words[i] = at < count ? load_from_host(source + at) : 0;
    }
#pragma unroll
    for (int i = 0; i < IN_FLIGHT; i++) {
      const int at = base + i * blockDim.x;
      if (at < count) target[at] = words[i];
    }
  }
}

// A row to compute, and what takes its record's place once it has been read.
constexpr int ROW_OFFSET = ROW_WORD_COUNT;  // its first token's index in the batch
constexpr int ROW_START = ROW_WORD_SAMPLE;  // and that token's position
struct Row {
  int32 slot, count, sample, block_index;
};
__device__ __forceinline__ Row load_row(const int32* words) {
  return {words[ROW_WORD_SLOT], words[ROW_WORD_COUNT], words[ROW_WORD_SAMPLE], words[ROW_WORD_BLOCK_INDEX]};
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
    prepare_batch(int32* __restrict__ token_ids, int32* __restrict__ positions, int32* __restrict__ slot_mappings,
                  int32* __restrict__ cu_seqlens_q, int32* __restrict__ context_lens, int32* __restrict__ row_slots,
                  int32* __restrict__ sample_slots, int32* __restrict__ sample_positions,
                  int32* __restrict__ sample_tokens, int32* num_computed, int32* block_tables, uint32* steps,
                  const int32* inbox, const int32* tokens, const int32* lengths, int32 num_tokens, int32 num_rows,
                  int32 groups, int32 mapping_stride, int32 slots, int32 capacity, int32 max_blocks, int32 block_size,
                  int32 areas, int32 area_words) {
  extern __shared__ int32 records[];  // [num_rows, row_words]
  const int row_words = ROW_WORD_BLOCK + groups;
  const int64 table_stride = static_cast<int64>(slots) * max_blocks;
  GRID_DEPENDENCY_WAIT();
  const uint32 step = load_coherent(steps);
  copy_from_host(records, area_of(inbox, step, areas, area_words), num_rows * row_words);
  __syncthreads();
  if (threadIdx.x == 0) *steps = step + 1;

  int first_token = 0;
  for (int base = 0; base < num_rows; base += blockDim.x) {
    const int i = base + threadIdx.x;
    int32* record = records + i * row_words;
    const Row row = i < num_rows ? load_row(record) : Row{};
    const Sums counts = scan_block(row.count);
    const int offset = first_token + counts.before;
    first_token += counts.total;
    if (i >= num_rows) continue;
    const int start = load_coherent(num_computed + row.slot), end = start + row.count;
    record[ROW_OFFSET] = offset;
    record[ROW_START] = start;
    cu_seqlens_q[i] = offset;
    row_slots[i] = row.slot;
    context_lens[i] = end;
    if (row.sample >= 0) {
      sample_slots[row.sample] = row.slot;
      sample_positions[row.sample] = end - 1;
      sample_tokens[row.sample] = offset + row.count - 1;
    }
    if (row.block_index >= 0) {
      int32* entry = block_tables + static_cast<int64>(row.slot) * max_blocks + row.block_index;
      for (int group = 0; group < groups; group++, entry += table_stride)
        if (record[ROW_WORD_BLOCK + group] >= 0) *entry = record[ROW_WORD_BLOCK + group];
    }
    // Only a vacant slot has several rows, and it stays where it is.
    if (load_coherent(lengths + row.slot) > 0) num_computed[row.slot] = end;
  }
  if (threadIdx.x == 0) cu_seqlens_q[num_rows] = first_token;
  __syncthreads();

  for (int i = threadIdx.x; i < groups * num_tokens; i += blockDim.x) {
    const int group = groups == 1 ? 0 : i / num_tokens, token = i - group * num_tokens;
    int32* slot_mapping = slot_mappings + static_cast<int64>(group) * mapping_stride + token;
    if (token >= first_token) {
      if (group == 0) {
        token_ids[token] = 0;
        positions[token] = 0;
      }
      *slot_mapping = -1;
      continue;
    }
    // The last row whose offset is <= token.
    int row = 0;
    for (int end = num_rows; end - row > 1;) {
      const int middle = (row + end) / 2;
      if (records[middle * row_words + ROW_OFFSET] <= token)
        row = middle;
      else
        end = middle;
    }
    const int32* record = records + row * row_words;
    const int64 slot = record[ROW_WORD_SLOT];
    const int position = record[ROW_START] + token - record[ROW_OFFSET];
    const int block = load_coherent(block_tables + group * table_stride + slot * max_blocks + position / block_size);
    if (group == 0) {
      token_ids[token] = load_coherent(tokens + slot * capacity + position);
      positions[token] = position;
    }
    *slot_mapping = block * block_size + position % block_size;
  }
  GRID_DEPENDENCY_PUBLISH();
}

// The outbox area of the step that was begun last becomes results[count].
extern "C" __global__ void post(uint32* __restrict__ outbox, const uint32* results, const uint32* steps, int32 areas,
                                int32 area_words, int32 count) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) area_of(outbox, load_coherent(steps) - 1, areas, area_words)[i] = load_coherent(results + i);
}

// target[indices[i]] = values[i]; the indices must differ.
extern "C" __global__ void scatter(uint32* __restrict__ target, const int32* __restrict__ indices,
                                   const uint32* __restrict__ values, int32 count) {
  GRID_DEPENDENCY_WAIT();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) target[indices[i]] = values[i];
  GRID_DEPENDENCY_PUBLISH();
}
