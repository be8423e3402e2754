// Decode attention one idea at a time, from the plainest kernel to the last one without tensor cores. docs/book/paged-attention.md
// walks through them; bench/naive-decode.ts checks each against float64 and times it beside kernels-cu/attention_decode.cu, which is
// what the engine runs. They are measured only, so they are not in kernels-cu/.
//
// Shapes: qkv bfloat16 [R, (G + 2)·NKV·D], of which the queries are read; keys and values bfloat16 [B, NKV, BS, D], the new token's
// among them; out bfloat16 [R, G·NKV·D]. Row r's query sits at position context_lens[r] − 1. partials float32 [R, G·NKV, splits, D]
// and stats [R, G·NKV, splits] (maximum, sum) are scratch of launches with more than one split, which merge_splits ends.
//
// Softmax is taken as tokens come: with m the largest score so far, sum and output are those of exp2(score − m), and both are
// scaled by exp2(old − new) whenever m grows (Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018). Scores are
// in units of log2(e), so that exp2 is enough.

using uint16 = unsigned short;
using uint32 = unsigned int;
using int64 = long long;

constexpr int D = HEAD_DIM, BS = BLOCK_SIZE, G = GROUP_SIZE, NKV = NUM_KV_HEADS, NQ = G * NKV;
constexpr int WARP = 32;
// No score yet.
#define NOTHING __int_as_float(0xff800000)

__device__ __forceinline__ float to_float(uint16 bits) { return __uint_as_float(static_cast<uint32>(bits) << 16); }

// To the nearest, halves to even. Not for NaN.
__device__ __forceinline__ uint16 to_bfloat16(float x) {
  const uint32 bits = __float_as_uint(x);
  return static_cast<uint16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Where a token's key or value begins: its block's number is in the row's table.
__device__ __forceinline__ int64 place_of(const int* table, int token, int kv_head) {
  return ((static_cast<int64>(table[token / BS]) * NKV + kv_head) * BS + token % BS) * D;
}

// The largest score and the sum of exp2(score − maximum).
struct Softmax {
  float maximum = NOTHING, sum = 0;
};

// A split of one head's result: its part of a row when there are several, else the end.
__device__ __forceinline__ void write_result(uint16* out, float* partials, float2* stats, int row, int head, int d,
                                             Softmax softmax, float output) {
  if (gridDim.z == 1) {
    out[(static_cast<int64>(row) * NQ + head) * D + d] = to_bfloat16(output / softmax.sum);
    return;
  }
  const int64 at = (static_cast<int64>(row) * NQ + head) * gridDim.z + blockIdx.z;
  partials[at * D + d] = output;
  if (d == 0) stats[at] = make_float2(softmax.maximum, softmax.sum);
}

// The tokens of this split of a row: equal parts, the last ones shorter or empty.
__device__ __forceinline__ int2 tokens_of_split(int context) {
  const int each = (context + gridDim.z - 1) / gridDim.z, begin = min(each * static_cast<int>(blockIdx.z), context);
  return make_int2(begin, min(begin + each, context));
}

// Grid (NQ, R), block D: one thread for each output.
extern "C" __global__ void __launch_bounds__(D) merge_splits(uint16* out, const float* partials, const float2* stats, int splits) {
  const int64 head = static_cast<int64>(blockIdx.y) * NQ + blockIdx.x;
  float maximum = NOTHING, sum = 0, output = 0;
  for (int split = 0; split < splits; split++) maximum = fmaxf(maximum, stats[head * splits + split].x);
  for (int split = 0; split < splits; split++) {
    const float2 part = stats[head * splits + split];
    const float weight = exp2f(part.x - maximum);
    sum += weight * part.y;
    output += weight * partials[(head * splits + split) * D + threadIdx.x];
  }
  out[head * D + threadIdx.x] = to_bfloat16(output / sum);
}

// 1 and 2: a thread a dimension, a block a query head, one token after another
// ---------------------------------------------------------------------------

// The sum over a block of D threads, in each of them.
__device__ __forceinline__ float block_sum(float x) {
  __shared__ float sums[D / WARP];
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < D / WARP; warp++) sum += sums[warp];
  __syncthreads();
  return sum;
}

// Grid (NQ, R, splits), block D. With one split it is what the definition says; with several, long rows keep more of the GPU busy.
extern "C" __global__ void __launch_bounds__(D)
    decode_naive(uint16* out, float* partials, float2* stats, const uint16* qkv, const uint16* keys, const uint16* values,
                 const int* block_tables, const int* context_lens, int max_blocks, float scale_log2) {
  const int head = blockIdx.x, row = blockIdx.y, d = threadIdx.x, kv_head = head / G;
  const int* table = block_tables + static_cast<int64>(row) * max_blocks;
  const int2 tokens = tokens_of_split(context_lens[row]);
  const float query = to_float(qkv[(static_cast<int64>(row) * (G + 2) * NKV + head) * D + d]) * scale_log2;
  Softmax softmax;
  float output = 0;
  for (int token = tokens.x; token < tokens.y; token++) {
    const int64 at = place_of(table, token, kv_head) + d;
    const float score = block_sum(query * to_float(keys[at]));
    const float maximum = fmaxf(softmax.maximum, score);
    const float rescale = exp2f(softmax.maximum - maximum), weight = exp2f(score - maximum);
    softmax = {maximum, softmax.sum * rescale + weight};
    output = output * rescale + weight * to_float(values[at]);
  }
  write_result(out, partials, stats, row, head, d, softmax, output);
}

// 3 to 5: 16 bytes a lane, so 16 lanes a token, and no barrier in the loop
// -----------------------------------------------------------------------

constexpr int LANE_DIMS = 8, LANES = D / LANE_DIMS, THREADS = D, WALKERS = THREADS / LANES;
static_assert(LANES == WARP / 2, "half a warp reads a token: heads of 128 dimensions");

__device__ __forceinline__ void unpack(uint4 packed, float (&x)[LANE_DIMS]) {
  const uint32 words[] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < LANE_DIMS / 2; i++) {
    x[2 * i] = __uint_as_float(words[i] << 16);
    x[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000);
  }
}

// What half a warp, a walker, has of HEADS query heads that share keys and values: a lane LANE_DIMS of their dimensions.
template <int HEADS>
struct Walker {
  float queries[HEADS][LANE_DIMS], outputs[HEADS][LANE_DIMS] = {};
  Softmax softmax[HEADS];

  __device__ __forceinline__ Walker(const uint16* row_queries, int first_head, int lane, float scale_log2) {
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      unpack(reinterpret_cast<const uint4*>(row_queries + static_cast<int64>(first_head + h) * D)[lane], queries[h]);
#pragma unroll
      for (int i = 0; i < LANE_DIMS; i++) queries[h][i] *= scale_log2;
    }
  }

  // The two walkers of a warp need not call it equally often: each exchanges among its own lanes.
  __device__ __forceinline__ void take(uint4 packed_key, uint4 packed_value) {
    float key[LANE_DIMS], value[LANE_DIMS];
    unpack(packed_key, key);
    unpack(packed_value, value);
    const uint32 own_lanes = 0xffffu << (threadIdx.x & LANES);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      float score = 0;
#pragma unroll
      for (int i = 0; i < LANE_DIMS; i++) score += queries[h][i] * key[i];
#pragma unroll
      for (int step = LANES / 2; step > 0; step /= 2) score += __shfl_xor_sync(own_lanes, score, step);
      const float maximum = fmaxf(softmax[h].maximum, score);
      const float rescale = exp2f(softmax[h].maximum - maximum), weight = exp2f(score - maximum);
      softmax[h] = {maximum, softmax[h].sum * rescale + weight};
#pragma unroll
      for (int i = 0; i < LANE_DIMS; i++) outputs[h][i] = outputs[h][i] * rescale + weight * value[i];
    }
  }
};

// Joins a block's walkers, of which some may have had no token, and writes the split's result.
template <int HEADS>
__device__ __forceinline__ void join_walkers(const Walker<HEADS>& own, int first_head, int row, uint16* out, float* partials,
                                             float2* stats) {
  __shared__ float outputs[WALKERS][HEADS][D];
  __shared__ float2 stats_of[WALKERS][HEADS];
  const int walker = threadIdx.x / LANES, lane = threadIdx.x % LANES;
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) outputs[walker][h][lane * LANE_DIMS + i] = own.outputs[h][i];
    if (lane == 0) stats_of[walker][h] = make_float2(own.softmax[h].maximum, own.softmax[h].sum);
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < HEADS; h++) {
    Softmax all;
    float output = 0;
    for (int w = 0; w < WALKERS; w++) all.maximum = fmaxf(all.maximum, stats_of[w][h].x);
    for (int w = 0; w < WALKERS; w++) {
      if (stats_of[w][h].y == 0) continue;
      const float weight = exp2f(stats_of[w][h].x - all.maximum);
      all.sum += weight * stats_of[w][h].y;
      output += weight * outputs[w][h][threadIdx.x];
    }
    write_result(out, partials, stats, row, first_head + h, threadIdx.x, all, output);
  }
}

// Every WALKERS-th token of the split, by loads into registers.
template <int HEADS>
__device__ __forceinline__ void decode_by_loads(uint16* out, float* partials, float2* stats, const uint16* qkv,
                                                const uint16* keys, const uint16* values, const int* block_tables,
                                                const int* context_lens, int max_blocks, float scale_log2) {
  const int first_head = blockIdx.x * HEADS, kv_head = first_head / G, row = blockIdx.y;
  const int walker = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int* table = block_tables + static_cast<int64>(row) * max_blocks;
  const int2 tokens = tokens_of_split(context_lens[row]);
  Walker<HEADS> own(qkv + static_cast<int64>(row) * (G + 2) * NKV * D, first_head, lane, scale_log2);
  for (int token = tokens.x + walker; token < tokens.y; token += WALKERS) {
    const int64 at = place_of(table, token, kv_head);
    own.take(reinterpret_cast<const uint4*>(keys + at)[lane], reinterpret_cast<const uint4*>(values + at)[lane]);
  }
  join_walkers<HEADS>(own, first_head, row, out, partials, stats);
}

// Grid (NQ, R, splits), block THREADS: each query head reads its keys and values for itself.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_vector(uint16* out, float* partials, float2* stats, const uint16* qkv, const uint16* keys, const uint16* values,
                  const int* block_tables, const int* context_lens, int max_blocks, float scale_log2) {
  decode_by_loads<1>(out, partials, stats, qkv, keys, values, block_tables, context_lens, max_blocks, scale_log2);
}

// Grid (NKV, R, splits), block THREADS: keys and values are read once for all query heads that share them.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_grouped(uint16* out, float* partials, float2* stats, const uint16* qkv, const uint16* keys, const uint16* values,
                   const int* block_tables, const int* context_lens, int max_blocks, float scale_log2) {
  decode_by_loads<G>(out, partials, stats, qkv, keys, values, block_tables, context_lens, max_blocks, scale_log2);
}

__device__ __forceinline__ void copy_async(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
}

// Grid (NKV, R, splits), block THREADS, STAGES · 2 · THREADS · 16 bytes of shared memory: the same with STAGES − 1 of a walker's
// tokens on their way while one is computed with. A lane reads what it has asked for itself, so nobody waits for others.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_pipelined(uint16* out, float* partials, float2* stats, const uint16* qkv, const uint16* keys, const uint16* values,
                     const int* block_tables, const int* context_lens, int max_blocks, float scale_log2) {
  extern __shared__ uint4 ring[];
  const int first_head = blockIdx.x * G, kv_head = blockIdx.x, row = blockIdx.y;
  const int walker = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  const int* table = block_tables + static_cast<int64>(row) * max_blocks;
  const int2 tokens = tokens_of_split(context_lens[row]);
  const auto slot_of = [&](int i) { return ring + (i % STAGES) * 2 * THREADS + threadIdx.x; };
  // A group for each token, and an empty one for those behind the end, so that counts of groups are counts of tokens.
  const auto ask = [&](int i) {
    const int token = tokens.x + walker + i * WALKERS;
    if (token < tokens.y) {
      const int64 at = place_of(table, token, kv_head);
      copy_async(slot_of(i), reinterpret_cast<const uint4*>(keys + at) + lane);
      copy_async(slot_of(i) + THREADS, reinterpret_cast<const uint4*>(values + at) + lane);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int i = 0; i < STAGES - 1; i++) ask(i);
  Walker<G> own(qkv + static_cast<int64>(row) * (G + 2) * NKV * D, first_head, lane, scale_log2);
  for (int i = 0; tokens.x + walker + i * WALKERS < tokens.y; i++) {
    ask(i + STAGES - 1);
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
    own.take(slot_of(i)[0], slot_of(i)[THREADS]);
  }
  join_walkers<G>(own, first_head, row, out, partials, stats);
}
