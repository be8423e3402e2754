// How a decode row's context is cut into splits, and how the splits' results become the row's: of attention_decode.cu and
// attention_merge.cu.
#pragma once
#include "decode_tiles.cuh"

#if !defined(DECODE_WARPS) || !defined(UNCUT_TOKENS)
#error "DECODE_WARPS and UNCUT_TOKENS come from src/backend/cuda/ops/decode-tiles.ts"
#endif

constexpr int WARPS = DECODE_WARPS;
// Warps of a block that take tiles of their own.
constexpr int TILE_WARPS = WARPS / SLICES;
static_assert(TILE_WARPS * SLICES == WARPS, "DECODE_WARPS must be whole tiles of DECODE_SLICES warps");
// Splits whose results are fetched together.
constexpr int SPLITS_AT_ONCE = 16;

// The splits of a row of `context` tokens: at most `most`, of at least min_tiles tiles each; window 0 = none.
struct RowSplits {
  int first_position;
  uint32 first_tile, num_tiles, split_tiles;

  __device__ __forceinline__ RowSplits(int context, int window, uint32 most, uint32 min_tiles) {
    first_position = window > 0 ? max(context - window, 0) : 0;
    first_tile = static_cast<uint32>(first_position) / TILE;
    num_tiles = (static_cast<uint32>(context) + TILE - 1) / TILE - first_tile;
    const uint32 wanted = num_tiles * TILE <= UNCUT_TOKENS ? 1 : min(most, (num_tiles + min_tiles - 1) / min_tiles);
    split_tiles = (num_tiles + max(wanted, 1u) * TILE_WARPS - 1) / (max(wanted, 1u) * TILE_WARPS) * TILE_WARPS;
  }
  __device__ __forceinline__ uint32 count() const { return (num_tiles + split_tiles - 1) / split_tiles; }
};

// Pairs of dimensions of all query heads of a KV head.
constexpr int GROUP_PAIRS = GROUP_SIZE * HEAD_DIM / 2;

// Read past L1, which is not coherent with what other CTAs have just written.
__device__ __forceinline__ float2 load_shared_result(const float2* p) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
  return v;
}

// One of a group's GROUP_PAIRS, merged from split `first`, and every `step`th after it, in their order: of each, partials
// [GROUP_PAIRS] and (maximum, sum) stats [GROUP_SIZE].
__device__ __forceinline__ Partial merge_splits(const float2* partials, const float2* stats, uint32 num_splits, int pair,
                                                uint32 first = 0, uint32 step = 1) {
  Partial total;
  for (; first < num_splits; first += SPLITS_AT_ONCE * step) {
    float2 split_stats[SPLITS_AT_ONCE], outputs[SPLITS_AT_ONCE];
#pragma unroll
    for (int i = 0; i < SPLITS_AT_ONCE; i++) {
      const uint32 s = first + i * step;
      split_stats[i] = {-infinity(), 0}, outputs[i] = {0, 0};
      if (s >= num_splits) continue;
      split_stats[i] = load_shared_result(stats + s * GROUP_SIZE + pair / (HEAD_DIM / 2));
      outputs[i] = load_shared_result(partials + s * GROUP_PAIRS + pair);
    }
    total.add(split_stats, outputs);
  }
  return total;
}
