// A row of logits in tiles, for sampling and log-probabilities.
//
// A first kernel reads the logits once and leaves a few statistics of each tile, its maximum among them; a second kernel
// then asks for "the tokens at or above t" and reads only the tiles whose maximum says that they have any. For the peaked
// rows of real models that is a small part of the row.
#pragma once
#include "keys.cuh"

#if !defined(LOGIT_TILE) || !defined(TILE_THREADS) || !defined(ROW_THREADS)
#error "LOGIT_TILE, TILE_THREADS and ROW_THREADS come from src/backend/cuda/ops/tiles.ts"
#endif
static_assert(TILE_THREADS % WARP == 0 && TILE_THREADS <= 1024, "TILE_THREADS must be whole warps of one block");
static_assert(ROW_THREADS % WARP == 0 && ROW_THREADS <= 1024, "ROW_THREADS must be whole warps of one block");

// Tokens of one tile: one warp's work, LANE_VECTORS float4 a lane.
constexpr int TILE = LOGIT_TILE;
constexpr int LANE_VECTORS = TILE / WARP / 4;
static_assert(LANE_VECTORS * WARP * 4 == TILE, "LOGIT_TILE must be a whole number of vectors a lane");

struct TileLogits {
  float4 vectors[LANE_VECTORS];
};

// Token of the first logit of this lane's vector `i`; a multiple of 4.
__device__ __forceinline__ int lane_token(int tile, int i) {
  return tile * TILE + (i * WARP + static_cast<int>(threadIdx.x) % WARP) * 4;
}

// Logits past the vocabulary are −inf.
__device__ __forceinline__ TileLogits load_tile(const float* row, int tile, int vocab) {
  TileLogits logits;
#pragma unroll
  for (int i = 0; i < LANE_VECTORS; i++) {
    const int token = lane_token(tile, i);
    float4 v = make_float4(-infinity(), -infinity(), -infinity(), -infinity());
    if (vocab % 4 == 0) {
      if (token < vocab) v = *reinterpret_cast<const float4*>(row + token);
    } else {
      if (token < vocab) v.x = row[token];
      if (token + 1 < vocab) v.y = row[token + 1];
      if (token + 2 < vocab) v.z = row[token + 2];
      if (token + 3 < vocab) v.w = row[token + 3];
    }
    logits.vectors[i] = v;
  }
  return logits;
}

// Calls f(logit, token) for this lane's tokens of the tile, those past the vocabulary included.
template <class F>
__device__ __forceinline__ void for_each_logit(const TileLogits& logits, int tile, F f) {
#pragma unroll
  for (int i = 0; i < LANE_VECTORS; i++) {
    const int token = lane_token(tile, i);
    f(logits.vectors[i].x, token);
    f(logits.vectors[i].y, token + 1);
    f(logits.vectors[i].z, token + 2);
    f(logits.vectors[i].w, token + 3);
  }
}

// The tile's maximum on every lane; NaN when it has a NaN.
__device__ __forceinline__ float tile_maximum(const TileLogits& logits) {
  float most = -infinity();
#pragma unroll
  for (int i = 0; i < LANE_VECTORS; i++) {
    const float4 v = logits.vectors[i];
    most = max_or_nan(most, max_or_nan(max_or_nan(v.x, v.y), max_or_nan(v.z, v.w)));
  }
  return unordered(warp_max_uint(ordered(most)));
}

// Σ exp((logit − maximum) · scale) on every lane; 0 when the maximum is −inf.
__device__ __forceinline__ float tile_exp_sum(const TileLogits& logits, float maximum, float scale) {
  if (maximum == -infinity()) return 0;
  float sum = 0;
  for_each_logit(logits, 0, [&](float logit, int) { sum += __expf((logit - maximum) * scale); });
  return warp_sum(sum);
}

// ── one block on one row ────────────────────────────────────────────────────────────────────────────────────────────

struct LogitRow {
  const float* logits;     // [vocab]
  const float* tile_most;  // [tiles], each tile's maximum, in shared memory
  int vocab;
  int tiles;
};

// Calls f(tile, logits) with the tiles that have a logit >= least. A tile belongs to one warp.
template <class F>
__device__ __forceinline__ void visit_tiles(const LogitRow& row, float least, F f) {
  const int step = blockDim.x / WARP;
  const auto seek = [&](int tile) {
    while (tile < row.tiles && !(row.tile_most[tile] >= least)) tile += step;
    return tile;
  };
#pragma unroll 1
  for (int tile = seek(threadIdx.x / WARP); tile < row.tiles; tile = seek(tile + step))
    f(tile, load_tile(row.logits, tile, row.vocab));
}

// Calls f(logit, token) for every logit >= least.
template <class F>
__device__ __forceinline__ void visit_logits(const LogitRow& row, float least, F f) {
  visit_tiles(row, least, [&](int tile, const TileLogits& logits) {
    for_each_logit(logits, tile, [&](float logit, int token) {
      if (token < row.vocab && logit >= least) f(logit, token);
    });
  });
}

// At least k logits of the row are >= the result: the k-th largest tile maximum when there are so many tiles, else −inf.
__device__ __forceinline__ float bound_of_kth(const LogitRow& row, int k) {
  if (k > row.tiles) return -infinity();
  float least = infinity();
  for (int tile = threadIdx.x; tile < row.tiles; tile += blockDim.x) {
    const float own = row.tile_most[tile];
    int greater = 0;
#pragma unroll 8
    for (int other = 0; other < row.tiles; other++) greater += row.tile_most[other] > own;
    if (greater < k) least = fminf(least, own);
  }
  return -block_max(-least);
}

// Radix selection, 8 bits a pass, of the k-th largest of the keys that `visit` gives and that lie in [low, high]. Returns
// a key with exactly k of them at or above it; `low` when there are fewer than k. Bits below LAST_SHIFT are not looked at:
// keys that differ only there are all at or above the result, or all below. `visit(f)` is called by all threads, the
// same keys each time, in any order and spread over the threads in any way.
template <int LAST_SHIFT, class Visit>
__device__ __forceinline__ uint64 kth_largest(int k, uint64 low, uint64 high, Visit visit) {
  __shared__ int histogram[256];
  __shared__ int digit, above, within;
  uint64 prefix = high;
  for (int shift = 56; shift >= LAST_SHIFT; shift -= 8) {
    if (low >> shift == high >> shift) continue;
    for (int i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
    if (threadIdx.x == 0) digit = -1;
    __syncthreads();
    visit([&](uint64 key) {
      if (key >= low && key <= high && (shift == 56 || key >> (shift + 8) == prefix >> (shift + 8)))
        atomicAdd(&histogram[key >> shift & 255], 1);
    });
    __syncthreads();
    if (threadIdx.x < WARP) {
      // Lane i has the bins 255 − 8i down to 248 − 8i.
      const int first = 255 - 8 * static_cast<int>(threadIdx.x);
      int own = 0;
      for (int i = 0; i < 8; i++) own += histogram[first - i];
      int sum = own;
      for (int offset = 1; offset < WARP; offset *= 2) {
        const int before = __shfl_up_sync(FULL_MASK, sum, offset);
        if (static_cast<int>(threadIdx.x) >= offset) sum += before;
      }
      int before = sum - own;
      if (before < k && k <= sum) {
        int bin = first;
        while (before + histogram[bin] < k) before += histogram[bin--];
        digit = bin, above = before, within = histogram[bin];
      }
    }
    __syncthreads();
    const int bin = digit;
    k -= above;
    const bool whole_bin = within == k;
    __syncthreads();
    if (bin < 0) return low;
    prefix = (prefix >> shift >> 8 << 8 | bin) << shift;
    if (whole_bin) break;
  }
  return prefix;
}
