// What drawing is left of a tile of logits: sampling.cu, candidates.cu.
#pragma once
#include "types.cuh"

#if !defined(TILE_STATS_BYTES)
#error "TILE_STATS_BYTES comes from src/backend/cuda/ops/tiles.ts"
#endif

struct __align__(16) TileStats {
  float most;     // maximum; NaN when there is a NaN
  float exp_sum;  // Σ exp((logit − most) / temperature), where top-p needs it
  uint32 best_score;
  uint32 best_token;
  __device__ __forceinline__ uint64 best() const { return static_cast<uint64>(best_score) << 32 | best_token; }
};
static_assert(sizeof(TileStats) == TILE_STATS_BYTES, "TILE_STATS_BYTES must be those of a TileStats");
