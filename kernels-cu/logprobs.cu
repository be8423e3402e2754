// logprob_tiles, logprob_rows: log-softmax of a row at one token, that token's rank, and the most likely tokens.
//
//   logits    float [samples, vocab]     tokens        int32 [samples]; outside the vocabulary: NaN and rank −1
//   rows      int32 [rows], of logits and tokens; below 0: nothing is computed. Null: all rows, in order
//   chosen    float [rows]               ranks         int32 [rows]: tokens that are strictly more likely
//   top_ids   int32 [rows, top]          top_logprobs  float [rows, top], best first, lowest id first among equals
//   stats     TileSum [rows, tiles]
//
// Parallelisation: logprob_tiles: a warp a tile. logprob_rows: a block a row.
// Why this version: one read of the logits; after it, rank and top tokens touch only the tiles whose maximum says that
// they matter. The top tokens are found by radix selection and sorted by counting, MAX_SORTED at a time: one round for
// any usual request, and as many as it takes when the whole vocabulary is asked for.
#include "logits.cuh"

#if !defined(TILE_SUM_BYTES)
#error "TILE_SUM_BYTES comes from src/backend/cuda/ops/logprobs.ts"
#endif

constexpr int MAX_SORTED = 1024;

struct TileSum {
  float most;
  float exp_sum;  // Σ exp(logit − most)
};
static_assert(sizeof(TileSum) == TILE_SUM_BYTES, "TILE_SUM_BYTES must be those of a TileSum");

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    logprob_tiles(TileSum* __restrict__ stats, const float* __restrict__ logits, const int32* __restrict__ rows,
                  int32 vocab, int32 tiles) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int tile = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  const int row = rows ? rows[blockIdx.y] : static_cast<int>(blockIdx.y);
  if (tile >= tiles || row < 0) return;
  const TileLogits tile_logits = load_tile(logits + static_cast<int64>(row) * vocab, tile, vocab);
  const float most = tile_maximum(tile_logits);
  const float exp_sum = tile_exp_sum(tile_logits, most, 1);
  if (threadIdx.x % WARP == 0) stats[static_cast<int64>(blockIdx.y) * tiles + tile] = {most, exp_sum};
}

// Writes ranks [done, done + count) of the row, those being the `count` largest keys in [low, high]; returns the last.
__device__ __forceinline__ uint64 write_top(int32* ids, float* logprobs, const LogitRow& row, int count, uint64 low,
                                            uint64 high, float log_normaliser) {
  __shared__ uint64 keys[MAX_SORTED];
  __shared__ int found;
  const auto visit = [&](auto f) {
    visit_logits(row, key_value(low), [&](float logit, int token) { f(rank_key(logit, token)); });
  };
  const uint64 least = kth_largest<0>(count, low, high, visit);
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  visit([&](uint64 key) {
    if (key < least || key > high) return;
    const int at = atomicAdd(&found, 1);
    if (at < count) keys[at] = key;
  });
  __syncthreads();
  for (int i = threadIdx.x; i < min(found, count); i += blockDim.x) {
    const uint64 key = keys[i];
    int rank = 0;
    for (int j = 0; j < min(found, count); j++) rank += keys[j] > key;
    ids[rank] = key_token(key);
    logprobs[rank] = key_value(key) - log_normaliser;
  }
  __syncthreads();
  return least;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1024 / ROW_THREADS)
    logprob_rows(float* __restrict__ chosen, int32* __restrict__ ranks, int32* __restrict__ top_ids,
                 float* __restrict__ top_logprobs, const float* __restrict__ logits, const TileSum* __restrict__ stats,
                 const int32* __restrict__ tokens, const int32* __restrict__ rows, int32 vocab, int32 tiles, int32 top) {
  extern __shared__ float tile_most[];  // [tiles]
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int64 index = blockIdx.x;
  const int sample = rows ? rows[index] : static_cast<int>(index);
  if (sample < 0) return;
  const LogitRow row = {logits + static_cast<int64>(sample) * vocab, tile_most, vocab, tiles};
  stats += index * tiles;

  float most = -infinity();
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    tile_most[tile] = stats[tile].most;
    most = fmaxf(most, stats[tile].most);
  }
  most = block_max(most);
  float sum = 0;
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x)
    if (stats[tile].exp_sum != 0) sum += stats[tile].exp_sum * expf(stats[tile].most - most);
  const float log_normaliser = most + logf(block_sum(sum));

  const int token = tokens[sample];
  const bool valid = 0 <= token && token < vocab;
  const float logit = valid ? row.logits[token] : 0;
  int more_likely = 0;
  if (valid) {
    visit_logits(row, logit, [&](float other, int) { more_likely += other > logit; });
    // Counts below 2²⁴ are exact in float.
    more_likely = static_cast<int>(block_sum(static_cast<float>(more_likely)));
  }
  if (threadIdx.x == 0) {
    chosen[index] = valid ? logit - log_normaliser : __int_as_float(0x7fc00000);
    ranks[index] = valid ? more_likely : -1;
  }

  uint64 high = ~uint64{0};
  for (int done = 0; done < top; done += MAX_SORTED) {
    const int count = min(MAX_SORTED, top - done);
    const float least = done == 0 ? bound_of_kth(row, count) : -infinity();
    const int64 at = index * top + done;
    high = write_top(top_ids + at, top_logprobs + at, row, count, static_cast<uint64>(ordered(least)) << 32, high,
                     log_normaliser) - 1;
  }
}
