// out[T, N] = x[T, K] · W[N, K]ᵀ on Hopper where both are 8-bit floats with a factor for each of their rows, with bias, activation or
// residual sum after it.
//
//   x       float8_e4m3 [T, K] by x_map, in the order of quantise_tokens.cu      x_factors  float [T]
//   weight  float8_e4m3 in the order of quantised.cuh by weight_map              factors    float [N]
//   bias    elem_t [N] or null        residual  elem_t [T, outputs] or null; may be out
//   out     elem_t or float [T, outputs]
// outputs is N, or N / 2 with GATED: act(first half) · second half. The maps' boxes are 64 columns of ROWS / TOKEN_CLUSTER rows (strips
// of both halves in turns with GATED), and 128 columns of TOKENS / ROW_CLUSTER tokens.
//
// Parallelisation: that of linear_wgmma.cu, whose bytes these are; a stage has twice as many columns.
//
// Why this version: 8-bit floats are multiplied twice as fast as 16-bit ones, and are half to read. Both operands come to the tensor
// cores as they are in memory: the columns of a block of 64 are in the order of quantised.cuh, which is no matter as long as x has
// them in the same one. For prompts a CTA has 128 rows of 256 tokens and takes many row tiles of the same tokens, one after another,
// so that CTAs which run together share what they read through L2.
//
// Sums are what the tensor cores keep: float32 with fewer bits of the mantissa in use than it has.
#define TILE_FLOAT8
#include "tile_outputs.cuh"

constexpr int THREADS = CONSUMERS + 2 * WARP;

// Grid (CTAs along the rows, token tiles, SPLITS), of whole clusters. `k_tiles` is K / (2 · K_TILE), `row_tiles` N / ROWS. With more row
// tiles than CTAs, SPLITS is 1. The next kernel may start when all weights are requested.
extern "C" __global__ void __cluster_dims__(ROW_CLUSTER, TOKEN_CLUSTER, SPLITS) __launch_bounds__(THREADS, MIN_CTAS)
    linear_float8(out_t* out, const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap x_map,
                  const float* __restrict__ factors, const float* x_factors, const elem_t* bias, const elem_t* residual,
                  int tokens, int outputs, int row_tiles, int k_tiles) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, split = blockIdx.z;
  const Place place = {blockIdx.x % ROW_CLUSTER, blockIdx.y % TOKEN_CLUSTER, blockIdx.z};
  const int first_k = k_tiles * split / SPLITS, end_k = k_tiles * (split + 1) / SPLITS;
  const Work work = {static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), row_tiles,
                     static_cast<int>(blockIdx.y) * TOKENS, first_k, end_k - first_k};
  if (threadIdx.x == CONSUMERS) init_barriers(shared, split);
  __syncthreads();
  if (CLUSTERED) cluster_arrive_relaxed();

  if (warp == CONSUMER_WARPS) {
    if (TOKEN_CLUSTER > 1) cluster_wait();
    uint16 ranks = 0;
    for (int i = 0; i < TOKEN_CLUSTER; i++) ranks |= 1 << (place.weights_first() + i * ROW_CLUSTER);
    fetch_weights(shared, work, &weight_map, place.token_share, ranks);
    GRID_DEPENDENCY_LAUNCH();
    GRID_DEPENDENCY_WAIT();
    if (CLUSTERED && TOKEN_CLUSTER == 1) cluster_wait();
  } else if (warp == CONSUMER_WARPS + 1) {
    if (lane == 0) tensor_map_prefetch(&x_map);
    __syncwarp();
    if (CLUSTERED) cluster_wait();
    GRID_DEPENDENCY_WAIT();
    fetch_x(shared, work, &x_map, place.row_share, ((1 << ROW_CLUSTER) - 1) << place.x_first());
  } else {
    if (CLUSTERED) cluster_wait();
    GRID_DEPENDENCY_WAIT();
    const uint32* x_factor_bits = reinterpret_cast<const uint32*>(x_factors) + work.token0;
    for (int i = threadIdx.x; i < TOKENS; i += CONSUMERS)
      shared.x_factors[i] = work.token0 + i < tokens ? __uint_as_float(load_coherent(x_factor_bits + i)) : 0;
    named_barrier_sync(1, CONSUMERS);
    Rings at = {{work.fills()}, {work.fills()}};
    for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step) {
      const Outputs to = {out, bias, residual, tokens, outputs, work.token0, split, tile * OUT_ROWS};
      const int row = to.warp_row() + lane / 4;
      const float scale[2] = {factors[row], factors[row + (GATED ? outputs : 8)]};
      float offset[2] = {};
      to.load_bias(offset);
      [[maybe_unused]] uint32 added[OWN_BLOCKS][2] = {};
      to.load_residual(added);
#if !OUT_FLOAT
      to.fetch_residual(shared, tile != work.first_tile);
#endif
      float d[TOKENS / 2] = {}, y[OWN_BLOCKS][4] = {};
      multiply(d, shared, at, place, first_k, work.k_tiles);
      exchange_sums(y, d, shared, place);
#pragma unroll
      for (int i = 0; i < OWN_BLOCKS; i++) {
        const int token = min(i * SPLITS + split, BLOCKS - 1) * 8 + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < 4; j++) y[i][j] = y[i][j] * (scale[j / 2] * shared.x_factors[token + j % 2]) + offset[j / 2];
      }
#if OUT_FLOAT
      to.store(y);
#else
      to.wait_residual();
      uint32 word[WORD_GROUPS][4] = {};
      to.finish(shared, word, y, added);
      if constexpr (STAGED)
        to.store_staged(shared, word, tile != work.first_tile);
      else
        to.store(word);
#endif
    }
  }
  // No CTA leaves while another may still write to its shared memory.
  if (CLUSTERED) cluster_arrive_relaxed(), cluster_wait();
}
