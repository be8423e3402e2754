// The results of rows that attention_decode.cu has cut into splits, where merging them is too much for one CTA.
//
// Shapes: partials [R, NKV, splits, g, D], partial_stats [R, NKV, splits, g] (maximum, sum), out [R, g·NKV·D]. Rows that were not
// cut have their results already, padding has none: both are left alone.
//
// Parallelisation: a CTA for MERGE_PAIRS pairs of dimensions of a row and KV head. MERGE_PARTS threads share a pair, each every
// MERGE_PARTSth split, and one merges what they have, in their order: results repeat bit for bit.
//
// Why this version: a group of 8 wide heads leaves 16 KiB a split. The last CTA of attention_decode.cu to arrive would read
// them alone, at what one multiprocessor gets from L2: 10 µs and more for the 64 splits of one row, where the keys and values
// take 20. All multiprocessors together have them in less time than this launch takes.
#include "decode_splits.cuh"

#if !defined(MERGE_PAIRS) || !defined(MERGE_PARTS)
#error "MERGE_PAIRS and MERGE_PARTS come from src/backend/cuda/ops/merge-attention.ts"
#endif
static_assert(GROUP_PAIRS % MERGE_PAIRS == 0, "MERGE_PAIRS must divide a group's pairs");

// Grid (GROUP_PAIRS / MERGE_PAIRS, NKV, R). max_splits: gridDim.z of the launch that left the results. The rest as there.
extern "C" __global__ void __launch_bounds__(MERGE_PAIRS* MERGE_PARTS)
    attention_merge(elem_t* __restrict__ out, const float2* partials, const float2* partial_stats,
                    const int* __restrict__ row_slots, const int* __restrict__ context_lens, uint32 max_splits, int window,
                    uint32 min_split_tiles, float value_scale, const float* __restrict__ sinks) {
  const int kv_head = blockIdx.y, num_kv_heads = gridDim.y, row = blockIdx.z;
  const int part = threadIdx.x / MERGE_PAIRS, own = threadIdx.x % MERGE_PAIRS, pair = blockIdx.x * MERGE_PAIRS + own;
  GRID_DEPENDENCY_WAIT();
  GRID_DEPENDENCY_LAUNCH();
  const RowSplits splits(context_lens[row], window, max_splits, min_split_tiles);
  if (row_slots[row] < 0 || splits.num_tiles <= splits.split_tiles) return;
  const int64 group = static_cast<int64>(row) * num_kv_heads + kv_head;
  Partial total = merge_splits(partials + group * max_splits * GROUP_PAIRS, partial_stats + group * max_splits * GROUP_SIZE,
                               splits.count(), pair, part, MERGE_PARTS);
  __shared__ float2 outputs[MERGE_PARTS][MERGE_PAIRS], stats[MERGE_PARTS][MERGE_PAIRS];
  outputs[part][own] = total.output, stats[part][own] = {total.max, total.sum};
  __syncthreads();
  if (part > 0) return;
  float2 all_outputs[MERGE_PARTS], all_stats[MERGE_PARTS];
#pragma unroll
  for (int i = 0; i < MERGE_PARTS; i++) all_outputs[i] = outputs[i][own], all_stats[i] = stats[i][own];
  Partial merged;
  merged.add(all_stats, all_outputs);
  merged.sum = with_sink(merged.sum, merged.max, sinks, kv_head * GROUP_SIZE + pair / (HEAD_DIM / 2));
  reinterpret_cast<uint32*>(out)[group * GROUP_PAIRS + pair] = merged.result(value_scale);
}
