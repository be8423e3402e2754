// The candidate of one rank for each row: the best key of its part of the vocabulary, which ranks exchange instead of logits.
// draw_rows (sampling.cu) takes the best of all ranks' candidates.
//
//   best   uint64 [rows]: 0 where no logit is above −inf, NOT_A_NUMBER where one is a NaN
//   best_of_keys   keys   uint64 [rows, parts], what kernels that score logits themselves leave: the same of each part. 0 afterwards.
//   best_of_tiles  stats  TileStats [rows, tiles], of sample_tiles
//
// Parallelisation: a warp a row.
// Why this version: some hundred keys a row, so the launch is what takes the time.
#include "keys.cuh"
#include "tile_stats.cuh"

#if !defined(TILE_THREADS)
#error "TILE_THREADS comes from src/backend/cuda/ops/tiles.ts"
#endif

__device__ __forceinline__ int warp_row() { return (blockIdx.x * blockDim.x + threadIdx.x) / WARP; }

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    best_of_keys(uint64* __restrict__ best, uint64* __restrict__ keys, int32 rows, int32 parts) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = warp_row(), lane = threadIdx.x % WARP;
  if (row >= rows) return;
  uint64 most = 0;
  for (int i = lane; i < parts; i += WARP) {
    uint64* part = keys + static_cast<int64>(row) * parts + i;
    const uint64 key = load_key(part);
    most = key > most ? key : most;
    *part = 0;
  }
  most = warp_max_key(most);
  if (lane == 0) best[row] = most;
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    best_of_tiles(uint64* __restrict__ best, const TileStats* __restrict__ stats, int32 rows, int32 tiles) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = warp_row(), lane = threadIdx.x % WARP;
  if (row >= rows) return;
  uint64 most = 0;
  for (int tile = lane; tile < tiles; tile += WARP) {
    const TileStats own = stats[static_cast<int64>(row) * tiles + tile];
    const uint64 key = own.most != own.most ? NOT_A_NUMBER : own.best();
    most = key > most ? key : most;
  }
  most = warp_max_key(most);
  if (lane == 0) best[row] = most;
}
