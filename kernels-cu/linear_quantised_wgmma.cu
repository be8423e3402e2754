// out[T, N] = x[T, K] · W[N, K]ᵀ on Hopper for some ten to some hundred tokens, W quantised, with bias, activation or residual sum
// after it.
//
//   x       elem_t [T, K], by x_map with boxes of TOKENS / ROW_CLUSTER rows by 64 columns
//   weight  codes in the order of quantised.cuh, by weight_map, whose boxes are those of a stage; scales, zeros and units as linear_quantised.cu has them
//   bias    elem_t [N] or null        residual  elem_t [T, outputs] or null; may be out
//   out     elem_t or float [T, outputs]
// outputs is N, or N / 2 with GATED: act(first half) · second half.
//
// Parallelisation: that of linear_wgmma.cu, but that a stage of weights is a contiguous piece of each strip, all fetched by one copy,
// and that a warpgroup's weights go through registers, where codes become floats, as wgmma's A.
//
// Why this version: to some ten tokens reading the codes is the cost, beyond it the arithmetic that makes floats of them. That is done
// for the next stage while the tensor cores multiply by this one. A group's scale is applied to the group's sums, in float32; where
// a row has one scale, to the result. A group's minimum is multiplied by the sums of its x, products of ones.
#include "tile_outputs.cuh"

constexpr int THREADS = CONSUMERS + 2 * WARP;
static_assert(!NORM && TOKEN_CLUSTER == 1, "the norm is a kernel ahead, and each CTA fetches its own weights");

struct Codes {
  const TensorMap* weight_map;
  const unsigned char *scales, *zeros, *units;
  int outputs, group_size, groups, block_rows, inputs;

  // Strip i of a tile: with GATED, strips of both halves in turns, so that a warp's 16 rows are 8 of each.
  __device__ __forceinline__ int strip(int tile, int i) const {
    return GATED ? tile * (STRIPS / 2) + i / 2 + i % 2 * (outputs / STRIP) : tile * STRIPS + i;
  }
};

__device__ __forceinline__ void fetch_codes(TileShared& shared, const Work& work, const Codes& from) {
  constexpr int STAGE_WORDS = CODE_BYTES / 4;
  const int lane = threadIdx.x % WARP;
  Position<WEIGHT_STAGES> at = {work.fills()};
  for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step)
#pragma unroll 1
    for (int k = 0; k < work.k_tiles; k++, at.advance()) {
      barrier_wait(shared_address(&shared.weights_empty[at.stage]), at.phase ^ 1);
      const uint32 full = shared_address(&shared.weights_full[at.stage]), target = shared_address(shared.codes[at.stage]);
      if (lane == 0) {
        barrier_expect(full, STRIPS * CODE_BYTES);
        copy_box<3>(target, from.weight_map, full, (work.first_k + k) * STAGE_WORDS, tile * (STRIPS / 2));
      }
      __syncwarp();
      if constexpr (STEPPED) {
        // A stage's steps of a row, of those of its superblock.
        constexpr int OWN_BYTES = SCALE_BYTES / STRIP;
        const uint32 scales = target + STRIPS * CODE_BYTES, units = scales + STRIPS * SCALE_BYTES;
        const int superblocks = from.inputs / SUPERBLOCK, column = (work.first_k + k) * K_TILE;
        const int within = column % SUPERBLOCK / SUB * FACTORS;
        for (int i = lane; i < STRIPS * STRIP; i += WARP) {
          const int64 row = (static_cast<int64>(from.strip(tile, i / STRIP)) * superblocks + column / SUPERBLOCK) * STRIP + i % STRIP;
          const unsigned char* steps = from.scales + row * STEP_BYTES + within;
          if (OWN_BYTES == 16) cp_async16(scales + i * OWN_BYTES, steps, true);
          else copy_async8(scales + i * OWN_BYTES, steps);
        }
        for (int i = lane; i < STRIPS * FACTORS; i += WARP) {
          const int64 at = static_cast<int64>(from.strip(tile, i / FACTORS)) * superblocks + column / SUPERBLOCK;
          cp_async16(units + i * 16, from.units + (at * FACTORS + i % FACTORS) * 16, true);
        }
        arrive_copied(full);
      } else if constexpr (IN_STAGES) {
        const int first = (work.first_k + k) * K_TILE / from.group_size;
        const uint32 scales = target + STRIPS * CODE_BYTES, zeros = scales + STRIPS * SCALE_BYTES;
        for (int i = lane; i < STRIPS * STAGE_GROUPS; i += WARP) {
          const int strip = from.strip(tile, i / STAGE_GROUPS);
          if constexpr (GROUPED) {
            const int64 group = static_cast<int64>(strip) * from.groups + first + i % STAGE_GROUPS;
            cp_async16(scales + i * 16, from.scales + group * 16, true);
            if (ZEROS) copy_async8(zeros + i * 8, from.zeros + group * 8);
          } else {
            copy_async4(scales + i * 4, from.scales + (static_cast<int64>(strip * STRIP / from.block_rows) * from.groups + first) * 4);
          }
        }
        arrive_copied(full);
      }
    }
}

// A stage's weights as wgmma's A, and their scales. `none` is zero, which the compiler does not know.
struct Taken {
  uint32 a[K_TILE / 16][4];
  float factor[STEPPED ? 1 : SUBS][2];
  // Of superblocks as they are stored, as factors would take more registers.
  Steps<K_TILE, STEPPED ? SUB : K_TILE / 4> steps[2];
  uint32 units[2];

  __device__ __forceinline__ GroupFactors factors(int sub, int half) const {
    if constexpr (STEPPED) return steps[half].factors(sub, units[half]);
    else return {factor[sub][half], 0};
  }
};

__device__ __forceinline__ void take(Taken& taken, TileShared& shared, Position<WEIGHT_STAGES>& at, uint32 none) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4;
  uint32 seen = 0;
  barrier_wait(shared_address(&shared.weights_full[at.stage]), at.phase);
  const unsigned char* stage = shared.codes[at.stage];
  const unsigned char* scales = stage + STRIPS * CODE_BYTES;
  const unsigned char* zeros = scales + STRIPS * SCALE_BYTES;
  [[maybe_unused]] const unsigned char* units = zeros + STRIPS * ZERO_BYTES;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int strip = warp * 2 + half;
    if constexpr (STEPPED) {
      taken.steps[half].load(scales + strip * SCALE_BYTES + r * (SCALE_BYTES / STRIP));
      taken.units[half] = load_units(units + strip * UNIT_BYTES, r);
      seen |= taken.steps[half].seen() | taken.units[half];
    }
#pragma unroll
    for (int sub = 0; sub < SUBS; sub++) {
      if constexpr (GROUPED)
        taken.factor[sub][half] = group_scale(reinterpret_cast<const uint16*>(scales + strip * SCALE_BYTES)[sub * STRIP + r]);
      else if constexpr (IN_STAGES && !STEPPED)
        taken.factor[sub][half] = reinterpret_cast<const float*>(scales)[strip];
    }
#pragma unroll
    for (int block = 0; block < STAGE_BLOCKS; block++) {
      const uint4 codes = load16(stage + strip * CODE_BYTES + block * (BLOCK_BYTES * STRIP) + lane * 16);
      const uint32 words[4] = {codes.x, codes.y, codes.z, codes.w};
      seen |= words[0] | words[1] | words[2] | words[3];
#pragma unroll
      for (int word = 0; word < 4; word++) {
        // Steps of 16 columns of a word: one of 8 bits, two of 4.
        constexpr int WORD_STEPS = WORD_PAIRS / 2;
        const int first = (block * 4 + word) * WORD_STEPS;
        uint32 pairs[WORD_PAIRS];
#pragma unroll
        for (int i = 0; i < WORD_STEPS; i++) {
          const int step = first + i;
          if (i == 0 || SUB == 16) {
            const int zero = ZEROS ? zeros[strip * ZERO_BYTES + step * 16 / SUB * STRIP + r] : USUAL_ZERO;
            seen |= ZEROS ? zero : 0;
            dequantise(pairs, words[word], offset_of(zero));
          }
          taken.a[step][half] = pairs[i * 2], taken.a[step][half + 2] = pairs[i * 2 + 1];
        }
      }
    }
  }
  // The stage is given back once all that was read has arrived, which the arrival's address depends on: a fence waits for much more.
  if constexpr (IN_STAGES && !STEPPED)
#pragma unroll
    for (int sub = 0; sub < SUBS; sub++) seen |= __float_as_uint(taken.factor[sub][0]) | __float_as_uint(taken.factor[sub][1]);
  __syncwarp();
  if (at.fills > WEIGHT_STAGES && lane == 0) barrier_arrive(shared_address(&shared.weights_empty[at.stage]) + (seen & none));
  at.advance();
}

// Adds the warpgroup's part of the product over this CTA's columns to `total`, which starts from zeros.
__device__ __forceinline__ void multiply(float (&total)[TOKENS / 2], TileShared& shared, Rings& at, const Place& place,
                                         int k_tiles, uint32 none) {
  Taken taken[2];
  Position<X_STAGES> before = at.x;
  constexpr int SUB_STEPS = SUB / 16;
  wgmma_pin(total);
  // Constants that the compiler knew it would put in registers again between products, which then wait for each other.
  [[maybe_unused]] uint32 ones[4];
  if constexpr (MINIMA)
#pragma unroll
    for (uint32& each : ones) asm volatile("mov.b32 %0, %1;" : "=r"(each) : "n"(ONES));
  // With MINIMA, sums of x are added to `sums`.
  const auto product = [&](float(&d)[TOKENS / 2], [[maybe_unused]] float(&sums)[TOKENS / 2], const Taken& now, int sub) {
    const uint32 x = shared_address(shared.x[at.x.stage]);
    wgmma_fence();
#pragma unroll
    for (int i = sub * SUB_STEPS; i < (sub + 1) * SUB_STEPS; i++) {
      const uint64 columns = matrix_descriptor(x + i / 4 * X_BYTES + i % 4 * 32, 1024);
      wgmma(d, now.a[i], columns);
      if constexpr (MINIMA) wgmma(sums, ones, columns);
    }
    wgmma_commit();
  };
  // Multiplies by a stage while the next one is taken.
  const auto step = [&](const Taken& now, Taken& next, bool started, bool more) {
    barrier_wait(shared_address(&shared.x_full[at.x.stage]), at.x.phase);
    if constexpr (!IN_STAGES) {
      product(total, total, now, 0);
      asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (started) before.give_back<ROW_CLUSTER>(&shared.x_empty[before.stage], place.x_first(), 1);
      if (more) take(next, shared, at.weights, none);
    } else {
      if (started) before.give_back<ROW_CLUSTER>(&shared.x_empty[before.stage], place.x_first(), 1);
#pragma unroll
      for (int sub = 0; sub < SUBS; sub++) {
        float d[TOKENS / 2] = {}, sums[TOKENS / 2] = {};
        wgmma_pin(d);
        if constexpr (MINIMA) wgmma_pin(sums);
        product(d, sums, now, sub);
        if (sub == SUBS - 1 && more) take(next, shared, at.weights, none);
        wgmma_wait<0>(d);
        if constexpr (MINIMA) wgmma_pin(sums);
        const GroupFactors factors[2] = {now.factors(sub, 0), now.factors(sub, 1)};
#pragma unroll
        for (int i = 0; i < TOKENS / 2; i++) {
          total[i] = fmaf(d[i], factors[i % 4 / 2].scale, total[i]);
          if constexpr (MINIMA) total[i] = fmaf(-factors[i % 4 / 2].minimum, sums[i], total[i]);
        }
      }
    }
    before = at.x, at.x.advance();
  };
  take(taken[0], shared, at.weights, none);
#pragma unroll 1
  for (int k = 0; k < k_tiles; k += 2) {
    step(taken[0], taken[1], k > 0, k + 1 < k_tiles);
    if (k + 1 < k_tiles) step(taken[1], taken[0], true, k + 2 < k_tiles);
  }
  if constexpr (!IN_STAGES) wgmma_wait<0>(total);
  before.give_back<ROW_CLUSTER>(&shared.x_empty[before.stage], place.x_first(), 1);
}

// Grid (CTAs along the rows, token tiles, SPLITS), of whole clusters. `k_tiles` is K / K_TILE, `row_tiles` N / ROWS. With more
// row tiles than CTAs, SPLITS is 1. The next kernel may start when all weights are requested.
extern "C" __global__ void __cluster_dims__(ROW_CLUSTER, TOKEN_CLUSTER, SPLITS) __launch_bounds__(THREADS, MIN_CTAS)
    linear_quantised_wgmma(out_t* out, const __grid_constant__ TensorMap weight_map, const unsigned char* __restrict__ scales,
                           const unsigned char* __restrict__ zeros, const unsigned char* __restrict__ units,
                           const __grid_constant__ TensorMap x_map, const elem_t* bias,
                           const elem_t* residual, int tokens, int outputs, int inputs, int row_tiles, int group_size, int groups,
                           int block_rows) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, split = blockIdx.z;
  const Place place = {blockIdx.x % ROW_CLUSTER, 0, blockIdx.z};
  const int k_tiles = inputs / K_TILE, first_k = k_tiles * split / SPLITS, end_k = k_tiles * (split + 1) / SPLITS;
  const Work work = {static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), row_tiles,
                     static_cast<int>(blockIdx.y) * TOKENS, first_k, end_k - first_k};
  if (threadIdx.x == CONSUMERS) init_barriers(shared, split);
  __syncthreads();
  if (CLUSTERED) cluster_arrive_relaxed();

  if (warp == CONSUMER_WARPS) {
    fetch_codes(shared, work, {&weight_map, scales, zeros, units, outputs, group_size, groups, block_rows, inputs});
    GRID_DEPENDENCY_LAUNCH();
    GRID_DEPENDENCY_WAIT();
    if (CLUSTERED) cluster_wait();
  } else if (warp == CONSUMER_WARPS + 1) {
    if (lane == 0) tensor_map_prefetch(&x_map);
    __syncwarp();
    if (CLUSTERED) cluster_wait();
    GRID_DEPENDENCY_WAIT();
    fetch_x(shared, work, &x_map, place.row_share, ((1 << ROW_CLUSTER) - 1) << place.x_first());
  } else {
    if (CLUSTERED) cluster_wait();
    GRID_DEPENDENCY_WAIT();
    Rings at = {{work.fills()}, {work.fills()}};
    for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step) {
      const Outputs to = {out, bias, residual, tokens, outputs, work.token0, split, tile * OUT_ROWS};
      float offset[2] = {}, scale[2] = {FLOAT8_FACTOR, FLOAT8_FACTOR};
      to.load_bias(offset);
      if constexpr (!IN_STAGES) {
        const int row = to.warp_row() + lane / 4;
        const float* of_rows = reinterpret_cast<const float*>(scales);
        scale[0] *= of_rows[row], scale[1] *= of_rows[row + (GATED ? outputs : 8)];
      }
      [[maybe_unused]] uint32 added[OWN_BLOCKS][2] = {};
      to.load_residual(added);
      float d[TOKENS / 2] = {}, y[OWN_BLOCKS][4] = {};
      multiply(d, shared, at, place, work.k_tiles, static_cast<uint32>(tokens) >> 16);
      exchange_sums(y, d, shared, place);
#pragma unroll
      for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) y[i][j] = y[i][j] * scale[j / 2] + offset[j / 2];
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
