// The first of the two launches of a mixture of experts for one token: the routing, the norm, and gate and up.
//
//   activated[j, i] = weight of the token's j-th expert · act(gate, up) of norm(x), i < I; and chosen[j] is that expert
//
//   logits   float [E]        router_bias, expert_scales  float [E] or null       x, gamma  elem_t [K]; gamma may be null
//   chosen   int32 [k]        weights      float [k]               activated elem_t [k, I]
//   matrices, scales, biases: see experts_few.cu
//
// Parallelisation: a tile is 8 outputs of one of the k experts; a CTA takes every gridDim.x-th. Within a CTA as in experts_few.cu, with
// the token in all columns of the mma.
//
// Why this version: a stream by itself waits for each launch, so there are as few as can be. Every CTA chooses and normalises for
// itself, which takes about a microsecond, and then has several tiles, each of whose pieces is asked for when that of the tile before
// has been used: with a CTA a tile, half of the instructions were for what is the same in all, and loads waited for them.
#include "activation.cuh"
#include "expert_choice.cuh"
#include "one_token.cuh"

constexpr int STEPS = (QUADS + ONE_WARPS - 1) / ONE_WARPS;
// Steps of a tile whose loads are under way, a divisor of all: pieces stay in registers of their own.
constexpr int depth_of(int depth) { return STEPS % depth == 0 ? depth : depth_of(depth - 1); }
constexpr int DEPTH = depth_of(STEPS < STAGES ? STEPS : STAGES);

extern "C" __global__ void __launch_bounds__(THREADS, ONE_CTAS)
    experts_one(elem_t* activated, int32* chosen, float* weights, const float* logits, const float* __restrict__ router_bias,
                const float* __restrict__ expert_scales,
                const elem_t* x, const elem_t* __restrict__ gamma, const unsigned char* __restrict__ matrices,
                const unsigned char* __restrict__ scales, const unsigned char* __restrict__ zeros,
                const elem_t* __restrict__ biases, int k, int softmax_over_all,
                int outputs, int activation, float alpha, float limit, float eps) {
  __shared__ uint4 input[QUADS * 4 * LOADS];
  __shared__ float partial[2][ONE_WARPS][2 * OUT_ROWS];
  __shared__ float squares[ONE_WARPS];
  const StagedInput staged = {input, QUADS * 4};
  const AllScales all_scales = {scales, zeros};
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, r = lane / 4;
  GRID_DEPENDENCY_WAIT();
  const Choice choice = choose(logits, router_bias, expert_scales, k, softmax_over_all);
  if (blockIdx.x == 0) {
    if (warp == 0 && lane < k) chosen[lane] = choice.expert, weights[lane] = choice.weight;
    __syncthreads();
    GRID_DEPENDENCY_PUBLISH();
  }
  GRID_DEPENDENCY_LAUNCH();

  const int tiles = (outputs + OUT_ROWS - 1) / OUT_ROWS, all = tiles * k, rows = 2 * outputs;
  // The gate's row and the one that it gates. Those past the end are computed as the first and not stored.
  const auto rows_of = [&](int tile) {
    const int j = tile / tiles, output = (tile - j * tiles) * OUT_ROWS + r;
    const int64 row = static_cast<int64>(__shfl_sync(FULL_MASK, choice.expert, j)) * rows + (output < outputs ? output : 0);
    WeightRows from;
    from.set(0, matrices, all_scales, row, 0);
    from.set(1, matrices, all_scales, row + outputs, 0);
    return from;
  };
  // Warps without a quad in the last step leave it out.
  const auto has = [&](int step) { return (step + 1) * ONE_WARPS <= QUADS || step * ONE_WARPS + warp < QUADS; };
  WeightPiece pieces[DEPTH];
  const auto fetch = [&](const WeightRows& from, int step) {
    const int quad = step * ONE_WARPS + warp;
    if (has(step)) pieces[step % DEPTH] = from.load(piece_column(quad, lane), quad * STEP);
  };
  WeightRows from = rows_of(blockIdx.x);
#pragma unroll
  for (int step = 0; step < DEPTH; step++) fetch(from, step);

  float square = 0;
  for (int i = tid; i < QUADS * 4 * LOADS; i += THREADS) {
    uint4 y = make_uint4(0, 0, 0, 0);
    if (IN_FEATURES % STEP == 0 || i * VEC < IN_FEATURES) {
      y = load16_coherent(x + i * VEC);
      if (gamma != nullptr) {
        float values[VEC];
        unpack(y, values);
#pragma unroll
        for (int e = 0; e < VEC; e++) square += values[e] * values[e];
        const uint4 g = load16(gamma + i * VEC);
        y = make_uint4(scale_pair(y.x, g.x), scale_pair(y.y, g.y), scale_pair(y.z, g.z), scale_pair(y.w, g.w));
      }
    }
    staged.store(i, y);
  }
  square = warp_sum(square);
  if (lane == 0) squares[warp] = square;
  __syncthreads();
  float scale = 1;
  if (gamma != nullptr) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < ONE_WARPS; w++) total += squares[w];
    scale = rsqrtf(total / IN_FEATURES + eps);
  }

  // The warps take turns to finish tiles.
  for (int tile = blockIdx.x, turn = 0; tile < all; tile += gridDim.x, turn = (turn + 1) % ONE_WARPS) {
    const int next = tile + gridDim.x, j = tile / tiles, output = (tile - j * tiles) * OUT_ROWS + lane;
    const int64 expert = __shfl_sync(FULL_MASK, choice.expert, j);
    const float weight = __shfl_sync(FULL_MASK, choice.weight, j);
    const bool finishes = warp == turn && lane < OUT_ROWS && output < outputs;
    float gate = 0, up = 0;
    if (biases && finishes) {
      const elem_t* bias = biases + expert * rows + output;
      gate = to_float(bias[0]), up = to_float(bias[outputs]);
    }
    const bool goes_on = next < all;
    const WeightRows following = rows_of(goes_on ? next : tile);
    float d[2][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (has(step)) multiply_piece(d, pieces[step % DEPTH], staged.load((step * ONE_WARPS + warp) * 4 + lane % 4));
      if (step + DEPTH < STEPS)
        fetch(from, step + DEPTH);
      else if (goes_on)
        fetch(following, step + DEPTH - STEPS);
    }
    from = following;
    // The sums before the last are not needed any more: all have passed the barrier behind them.
    float(&sums)[ONE_WARPS][2 * OUT_ROWS] = partial[turn % 2];
    if (lane % 4 == 0) sums[warp][r] = d[0][0] + d[1][0], sums[warp][OUT_ROWS + r] = d[0][2] + d[1][2];
    __syncthreads();
    if (!finishes) continue;
    float y = 0, z = 0;
#pragma unroll
    for (int w = 0; w < ONE_WARPS; w++) y += sums[w][lane], z += sums[w][OUT_ROWS + lane];
    y = weight * activate_pair(y * scale + gate, z * scale + up, activation, alpha, limit);
    activated[static_cast<int64>(j) * outputs + output] = from_float(y);
  }
}
