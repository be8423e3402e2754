// The first of the two launches of a mixture of experts for one token: the routing, the norm, and gate and up.
//
//   activated[j, i] = weight of the token's j-th expert · act(gate, up) of norm(x), i < I; and chosen[j] is that expert
//
//   logits   float [E]        router_bias  float [E] or null       x, gamma  elem_t [K]; gamma may be null
//   chosen   int32 [k]        weights      float [k]               activated elem_t [k, I]
//   matrices, scales, biases: see experts_few.cu
//
// Parallelisation: grid (tiles of I, k). Within a CTA as in experts_few.cu, with the token in all columns of the mma.
//
// Why this version: a stream by itself waits for each launch, so there are as few as can be. Every CTA chooses for itself, which takes
// a warp about a microsecond.
#include "activation.cuh"
#include "expert_choice.cuh"
#include "one_token.cuh"

constexpr int OUT_ROWS = ROWS / 2;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    experts_one(elem_t* activated, int32* chosen, float* weights, const float* logits, const float* __restrict__ router_bias,
                const elem_t* x, const elem_t* __restrict__ gamma, const unsigned char* __restrict__ matrices,
                const unsigned char* __restrict__ scales, const elem_t* __restrict__ biases, int k, int softmax_over_all,
                int outputs, int activation, float alpha, float limit, float eps) {
  __shared__ Sums sums;
  __shared__ float squares[ONE_WARPS];
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, j = blockIdx.y;
  const int r = lane / 4, column = warp * STEP + lane % 4 * PIECE;
  GRID_DEPENDENCY_WAIT();
  const Choice choice = choose(logits, router_bias, k, softmax_over_all);
  const int expert = __shfl_sync(FULL_MASK, choice.expert, j);
  const float weight = __shfl_sync(FULL_MASK, choice.weight, j);
  if (blockIdx.x == 0 && j == 0) {
    if (warp == 0 && lane < k) chosen[lane] = choice.expert, weights[lane] = choice.weight;
    __syncthreads();
    GRID_DEPENDENCY_PUBLISH();
  }
  GRID_DEPENDENCY_LAUNCH();

  const int first = blockIdx.x * OUT_ROWS, rows = 2 * outputs;
  WeightRows from[FRAGMENTS];
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int output = first + f * 8 + r;
      const int64 row = static_cast<int64>(expert) * rows + (output < outputs ? output + half * outputs : 0);
      from[f].set(half, matrices, scales, row, column);
    }
  constexpr int DEPTH = STEPS < STAGES ? STEPS : STAGES;
  WeightPiece pieces[DEPTH][FRAGMENTS];
  InputPiece v[DEPTH];
  float square = 0;
  const auto fetch = [&](int step) {
    const bool inside = is_inside(column, step);
    const int at = inside ? step * ONE_WARPS * STEP : -column, start = (step * ONE_WARPS + warp) * STEP;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) pieces[step % DEPTH][f] = from[f].load(at, start < IN_FEATURES ? start : 0);
    const uint32 mask = inside ? 0xffffffffu : 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const uint4 y = load16_coherent(x + column + at + i * 8);
      v[step % DEPTH].words[i] = make_uint4(y.x & mask, y.y & mask, y.z & mask, y.w & mask);
    }
  };
  float d[FRAGMENTS][2][4] = {};
#pragma unroll
  for (int step = 0; step < DEPTH; step++) fetch(step);
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    InputPiece& y = v[step % DEPTH];
    if (gamma != nullptr) {
      const int at = is_inside(column, step) ? column + step * ONE_WARPS * STEP : 0;
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        float values[VEC];
        unpack(y.words[i], values);
#pragma unroll
        for (int e = 0; e < VEC; e++) square += values[e] * values[e];
        const uint4 g = load16(gamma + at + i * 8);
        y.words[i] = make_uint4(scale_pair(y.words[i].x, g.x), scale_pair(y.words[i].y, g.y), scale_pair(y.words[i].z, g.z),
                                scale_pair(y.words[i].w, g.w));
      }
    }
    y.order();
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) multiply_piece(d[f], pieces[step % DEPTH][f], y);
    if (step + DEPTH < STEPS) fetch(step + DEPTH);
  }
  sums.store(warp, lane, d);
  // The quads of a warp have the same columns.
  square += __shfl_xor_sync(FULL_MASK, square, 1);
  square += __shfl_xor_sync(FULL_MASK, square, 2);
  if (lane == 0) squares[warp] = square;
  __syncthreads();

  const int output = first + tid;
  if (tid >= OUT_ROWS || output >= outputs) return;
  float scale = 1;
  if (gamma != nullptr) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < ONE_WARPS; w++) total += squares[w];
    scale = rsqrtf(total / IN_FEATURES + eps);
  }
  const int at = tid / 8 * 16 + tid % 8;
  float gate = sums.total(at) * scale, up = sums.total(at + 8) * scale;
  if (biases) {
    const elem_t* bias = biases + static_cast<int64>(expert) * rows + output;
    gate += to_float(bias[0]), up += to_float(bias[outputs]);
  }
  activated[static_cast<int64>(j) * outputs + output] = from_float(weight * activate_pair(gate, up, activation, alpha, limit));
}
