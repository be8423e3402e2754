// out[T, N] = x[T, K] · weight[N, K]ᵀ on Hopper for some ten to some hundred tokens, with a norm before the product and bias,
// activation or residual sum after it: the products of decode steps.
//
//   x       elem_t [T, K]            gamma     elem_t [K], the norm's weight, with NORM
//   weight  elem_t [N, K]            bias      elem_t [N] or null
//   out     elem_t or float [T, outputs]       residual  elem_t [T, outputs] or null; may be out
// outputs is N, or N / 2 with GATED: act(first half) · second half. weight_map and x_map are tensor maps of the matrices, with
// boxes of ROWS / TOKEN_CLUSTER rows (of both halves in turns of 8 with GATED) and TOKENS / ROW_CLUSTER rows by 64 columns.
//
// Parallelisation: the operands are swapped, weights are wgmma's 64-row side and tokens its other one. A CTA takes tiles of
// ROWS = 64 · GROUPS weight rows and TOKENS tokens, a warpgroup 64 rows of them; two warps keep rings of weights and of x, 64
// columns a stage, filled. ROW_CLUSTER CTAs that take the same tokens, and TOKEN_CLUSTER that take the same rows, each fetch
// their share of what they have in common for all. SPLITS CTAs share the columns of a tile and add up through distributed
// shared memory in the order of their ranks, so that results repeat bit for bit.
//
// Why this version: up to some hundred tokens reading the weights is the cost, and the time between one product and the next;
// so the ring of weights is filled before the wait for the kernels before, and what surrounds a product is in its kernel. At
// 256 tokens it is what every multiprocessor reads from L2: hence the clusters. The norm is no pass of its own: weights go
// through registers, where gamma multiplies them (the one rounding that x would have had), warps of their own find the squares
// of x, and the row's scale is applied to the finished sums. From about 100 tokens on those warps are too slow, and a norm kernel
// ahead, beside which the weights are fetched, is faster.
//
// Measured on an H100 (read ceiling 3.13 TB/s) and compared with its versions in bench/NOTES.md.
#include "tile_outputs.cuh"

constexpr int THREADS = CONSUMERS + (2 + SQUARE_WARPS) * WARP;
// Grid (CTAs along the rows, token tiles, SPLITS), of whole clusters. `k_tiles` is K / K_TILE, `row_tiles` N / ROWS. With more
// row tiles than CTAs, SPLITS is 1. The next kernel may start when all weights are requested.
extern "C" __global__ void __cluster_dims__(ROW_CLUSTER, TOKEN_CLUSTER, SPLITS) __launch_bounds__(THREADS, MIN_CTAS)
    linear_wgmma(out_t* out, const __grid_constant__ TensorMap weight_map, const __grid_constant__ TensorMap x_map,
                 const elem_t* gamma, const elem_t* bias, const elem_t* residual, int tokens, int outputs, int row_tiles,
                 int k_tiles, float eps) {
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
#if NORM
    if (lane == 0) {
      barrier_expect(shared_address(&shared.gamma_full), k_tiles * K_TILE * 2);
      copy_bytes(shared_address(shared.gamma), gamma, k_tiles * K_TILE * 2, shared_address(&shared.gamma_full));
    }
#endif
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
#if NORM
  } else if (warp > CONSUMER_WARPS + 1) {
    if (CLUSTERED) cluster_wait();
    find_squares(shared, work, place);
#endif
  } else {
    if (CLUSTERED) cluster_wait();
    GRID_DEPENDENCY_WAIT();
#if NORM
    barrier_wait(shared_address(&shared.gamma_full), 0);
    float factor[OWN_BLOCKS][2];
#endif
    Rings at = {{work.fills()}, {work.fills()}};
    for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step) {
      const Outputs to = {out, bias, residual, tokens, outputs, work.token0, split, tile * OUT_ROWS};
      float offset[2] = {};
      to.load_bias(offset);
      [[maybe_unused]] uint32 added[OWN_BLOCKS][2] = {};
      to.load_residual(added);
      float d[TOKENS / 2] = {}, y[OWN_BLOCKS][4] = {};
      multiply(d, shared, at, place, first_k, work.k_tiles);
      exchange_sums(y, d, shared, place);
#if NORM
      if (tile == work.first_tile) norm_factors(factor, shared, split, k_tiles * K_TILE, eps);
#endif
#pragma unroll
      for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
#if NORM
          y[i][j] *= factor[i][j % 2];
#endif
          y[i][j] += offset[j / 2];
        }
#if OUT_FLOAT
      to.store(y);
#else
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
