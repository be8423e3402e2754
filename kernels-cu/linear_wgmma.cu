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
#include "activation.cuh"
#include "linear_tile.cuh"

#if !defined(GATED) || !defined(ACTIVATION) || !defined(OUT_FLOAT) || !defined(MIN_CTAS) || \
    !defined(LINEAR_SHARED_BYTES)
#error "GATED, ACTIVATION, OUT_FLOAT, MIN_CTAS and LINEAR_SHARED_BYTES come from src/backend/cuda/ops/wgmma-linear.ts"
#endif

constexpr int THREADS = CONSUMERS + (2 + SQUARE_WARPS) * WARP;
// Outputs of a tile, and of a warp's 16 rows.
constexpr int OUT_ROWS = GATED ? ROWS / 2 : ROWS, WARP_ROWS = GATED ? 8 : 16;
// Outputs leave through shared memory, those of a token together. Where splits share a tile, each has few of them, and the
// barrier costs more than it brings.
constexpr bool STAGED = SPLITS == 1 && !OUT_FLOAT;

#if OUT_FLOAT
using out_t = float;
#else
using out_t = elem_t;
// Words of packed outputs of a block that a thread holds, and blocks whose words make 16 bytes.
constexpr int WORDS = GATED ? 1 : 2, WORD_BLOCKS = 4 / WORDS, WORD_GROUPS = ceil_div(OWN_BLOCKS, WORD_BLOCKS);
#endif

struct Shared : TileShared {
  // Padded so that neighbouring tokens' eight rows are on different banks.
  alignas(16) unsigned char staged[STAGED ? OWN_BLOCKS * 8 : 1][OUT_ROWS * 2 + 16];
};
static_assert(sizeof(Shared) <= LINEAR_SHARED_BYTES, "the host must ask for room for Shared");

__device__ __forceinline__ uint32 load4_coherent(const elem_t* p) {
  uint32 word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory");
  return word;
}

// Lane c of a quad gets word c of lanes 0 to 3.
__device__ __forceinline__ uint4 transpose_quad(const uint32 (&word)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32 first = __shfl_xor_sync(FULL_MASK, odd ? word[0] : word[1], 1);
  const uint32 second = __shfl_xor_sync(FULL_MASK, odd ? word[2] : word[3], 1);
  const uint32 a = odd ? first : word[0], b = odd ? word[1] : first, c = odd ? second : word[2], d = odd ? word[3] : second;
  const uint32 third = __shfl_xor_sync(FULL_MASK, high ? a : c, 2), fourth = __shfl_xor_sync(FULL_MASK, high ? b : d, 2);
  return make_uint4(high ? third : a, high ? fourth : b, high ? c : third, high ? d : fourth);
}

// A warpgroup's part of a tile's outputs. A thread holds, of its i-th block, y[i]: row r of its warp's 16 for tokens 2c and
// 2c + 1, then row r + 8, where r = lane / 4 and c = lane % 4. With GATED, row r + 8 is what row r gates.
struct Outputs {
  out_t* out;
  const elem_t *bias, *residual;
  int tokens, outputs;
  // First token of the tile, split that this CTA is, first output of the tile.
  int token0, split, row0;

  __device__ __forceinline__ int warp_row() const { return row0 + static_cast<int>(threadIdx.x) / WARP * WARP_ROWS; }
  __device__ __forceinline__ bool has(int i) const { return i < OWN_BLOCKS && i * SPLITS + split < BLOCKS; }
  // First token of the i-th block.
  __device__ __forceinline__ int first_token(int i) const { return token0 + (i * SPLITS + split) * 8; }
  __device__ __forceinline__ int64 index(int token, int row) const { return static_cast<int64>(token) * outputs + row; }

  // Of rows r and r + 8, or of what they are with GATED.
  __device__ __forceinline__ void load_bias(float (&offset)[2]) const {
    if (!bias) return;
    const int row = warp_row() + static_cast<int>(threadIdx.x) % WARP / 4;
    offset[0] = to_float(bias[row]), offset[1] = to_float(bias[row + (GATED ? outputs : 8)]);
  }

  // As memory has it: token r, rows 2c and 2c + 1, then 8 rows further.
  __device__ __forceinline__ void load_residual(uint32 (&added)[OWN_BLOCKS][2]) const {
    if (GATED || OUT_FLOAT || !residual) return;
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i++) {
      const int token = first_token(i) + lane / 4;
      const elem_t* from = residual + index(token, warp_row() + lane % 4 * 2);
      if (has(i) && token < tokens) added[i][0] = load4_coherent(from), added[i][1] = load4_coherent(from + 8);
    }
  }

#if OUT_FLOAT
  __device__ __forceinline__ void store(const float (&y)[OWN_BLOCKS][4]) const {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const int token = first_token(i) + lane % 4 * 2 + j % 2;
        if (has(i) && token < tokens) out[index(token, warp_row() + lane / 4 + j / 2 * 8)] = y[i][j];
      }
  }
#else
  // Activation, residual, rounding: words of two tokens of a row.
  __device__ __forceinline__ void finish(uint32 (&word)[WORD_GROUPS][4], float (&y)[OWN_BLOCKS][4],
                                         uint32 (&added)[OWN_BLOCKS][2]) const {
    if (!GATED && residual)
#pragma unroll
      for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) added[i][half] = transpose_8x8(added[i][half]);
#pragma unroll
    for (int i = 0; i < OWN_BLOCKS; i++) {
#if GATED
#pragma unroll
      for (int j = 0; j < 2; j++) y[i][j] = activate(y[i][j], ACTIVATION) * y[i][j + 2];
      word[i / 4][i % 4] = pack2(y[i][0], y[i][1]);
#else
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float first = y[i][half * 2], second = y[i][half * 2 + 1], low, high;
#if ACTIVATION >= 0
        first = activate(first, ACTIVATION), second = activate(second, ACTIVATION);
#endif
        unpack2(added[i][half], low, high);
        word[i / 2][i % 2 * 2 + half] = pack2(first + low, second + high);
      }
#endif
    }
  }

  // Each thread stores eight outputs of a token, of block c, or c / 2, of four or two.
  __device__ __forceinline__ void store(uint32 (&word)[WORD_GROUPS][4]) const {
    const int lane = threadIdx.x % WARP;
#pragma unroll
    for (int group = 0; group < WORD_GROUPS; group++)
#pragma unroll
      for (int j = 0; j < 4; j++) word[group][j] = transpose_8x8(word[group][j]);
#pragma unroll
    for (int group = 0; group < WORD_GROUPS; group++) {
      const uint4 rows = transpose_quad(word[group]);
      const int i = group * WORD_BLOCKS + lane % 4 / WORDS, token = first_token(i) + lane / 4;
      if (has(i) && token < tokens) store16(out + index(token, warp_row() + lane % WORDS * 8), rows);
    }
  }

  // The same through shared memory, which earlier outputs may still be read from if `again`.
  __device__ __forceinline__ void store_staged(Shared& shared, const uint32 (&word)[WORD_GROUPS][4], bool again) const {
    constexpr int PIECES = OUT_ROWS / VEC;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (again) named_barrier_sync(1, CONSUMERS);
    const auto place = [&](int block, int half) {
      return shared_address(shared.staged[block * 8 + lane % 8] + (warp * WORDS + half) * 16);
    };
#pragma unroll
    for (int first = 0; first < OWN_BLOCKS; first += WORD_BLOCKS) {
      const int matrix = lane / 8;
      if (first + WORD_BLOCKS <= OWN_BLOCKS)
        stmatrix_x4_trans(place(first + matrix / WORDS, matrix % WORDS), word[first / WORD_BLOCKS]);
      else
#pragma unroll
        for (int j = 0; j < (OWN_BLOCKS - first) * WORDS; j++)
          stmatrix_trans(place(first + j / WORDS, j % WORDS), word[first / WORD_BLOCKS][j]);
    }
    named_barrier_sync(1, CONSUMERS);
#pragma unroll
    for (int j = threadIdx.x; j < OWN_BLOCKS * 8 * PIECES; j += CONSUMERS) {
      const int row = j / PIECES, piece = j % PIECES, token = first_token(row / 8) + row % 8;
      if (token < tokens) store16(out + index(token, row0 + piece * VEC), load16(shared.staged[row] + piece * 16));
    }
  }
#endif
};

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
      to.finish(word, y, added);
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
