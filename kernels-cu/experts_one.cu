// A mixture of experts for one token, in two launches: the routing and the norm are part of the first, the sum over its experts of the
// second.
//
//   UP     activated[j, i] = weight of the token's j-th expert · act(gate, up) of norm(x), i < I; and chosen[j] is that expert
//   else   out[n] = added[n] + Σ over j: row n of expert chosen[j] · activated[j] + weights[j] · its bias
//
//   logits   float [E]        router_bias  float [E] or null       x, gamma  elem_t [K]; gamma may be null
//   chosen   int32 [k]        weights      float [k]               activated elem_t [k, I]
//   added    elem_t [N] or null; may be out                        biases    elem_t [E, N] or null
//   matrices, scales: see experts_few.cu
//
// Parallelisation: UP: grid (tiles of I, k). Else: grid (tiles of N); a CTA takes its rows of all experts, as if they were one matrix
// with k · K columns. Within a CTA as in experts_few.cu, with the token in all columns of the mma.
//
// Why this version: a stream by itself waits for each launch, so there are as few as can be. Every CTA of the first one chooses for
// itself, which takes a warp about a microsecond. The second one's weights are asked for before it waits for the first one, whose
// first CTA has published by then what was chosen.
#include "activation.cuh"
#include "expert_choice.cuh"
#include "expert_pieces.cuh"

#if !defined(ONE_WARPS) || !defined(UP) || !defined(IN_FEATURES) || !defined(FRAGMENTS) || !defined(STAGES)
#error "ONE_WARPS, UP, IN_FEATURES, FRAGMENTS and STAGES come from src/backend/cuda/ops/experts-one.ts"
#endif

constexpr int THREADS = ONE_WARPS * WARP;
constexpr int STEPS = (IN_FEATURES + ONE_WARPS * STEP - 1) / (ONE_WARPS * STEP);
constexpr int ROWS = FRAGMENTS * 16;
constexpr int OUT_ROWS = UP ? ROWS / 2 : ROWS;

// True if a lane's columns of a step are columns of the matrix.
__device__ __forceinline__ bool is_inside(int column, int step) {
  return (step + 1) * ONE_WARPS * STEP <= IN_FEATURES || column + step * ONE_WARPS * STEP < IN_FEATURES;
}

// Column 0 of the warps' sums, all that there is.
struct Sums {
  float rows[ONE_WARPS][ROWS];

  __device__ __forceinline__ void store(int warp, int lane, const float (&d)[FRAGMENTS][2][4]) {
    if (lane % 4 != 0) return;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) {
      rows[warp][f * 16 + lane / 4] = d[f][0][0] + d[f][1][0];
      rows[warp][f * 16 + 8 + lane / 4] = d[f][0][2] + d[f][1][2];
    }
  }
  __device__ __forceinline__ float total(int row) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < ONE_WARPS; w++) sum += rows[w][row];
    return sum;
  }
};

#if UP
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
#else
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    experts_one_sum(elem_t* out, const elem_t* added, const elem_t* activated, const int32* chosen, const float* weights,
                    const unsigned char* __restrict__ matrices, const unsigned char* __restrict__ scales,
                    const elem_t* __restrict__ biases, int k, int outputs) {
  extern __shared__ __align__(16) unsigned char input[];
  __shared__ Sums sums;
  __shared__ int32 experts[MAX_PER_TOKEN];
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
  const int r = lane / 4, column = warp * STEP + lane % 4 * PIECE;
  GRID_DEPENDENCY_LAUNCH();
  if (tid < k) experts[tid] = load_coherent(chosen + tid);
  __syncthreads();

  const int first = blockIdx.x * OUT_ROWS;
  WeightRows from[FRAGMENTS];
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int output = first + f * 16 + half * 8 + r;
      from[f].set(half, matrices, scales, output < outputs ? output : 0, column);
    }
  // Steps run through the experts, one after another.
  const int steps = k * STEPS;
  WeightPiece pieces[STAGES][FRAGMENTS];
  const auto fetch = [&](WeightPiece (&piece)[FRAGMENTS], int step) {
    const int within = step % STEPS;
    const int at = is_inside(column, within) ? within * ONE_WARPS * STEP : -column;
    const int start = (within * ONE_WARPS + warp) * STEP;
    const int64 row = static_cast<int64>(experts[step / STEPS]) * outputs;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) piece[f] = from[f].load(at, start < IN_FEATURES ? start : 0, row);
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++)
    if (i < steps) fetch(pieces[i], i);
  GRID_DEPENDENCY_WAIT();
  for (int i = tid * VEC; i < k * IN_FEATURES; i += THREADS * VEC) store16(input + i * 2, load16_coherent(activated + i));
  __syncthreads();

  float d[FRAGMENTS][2][4] = {};
  for (int base = 0; base < steps; base += STAGES) {
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
      const int step = base + i;
      if (step >= steps) break;
      const int within = step % STEPS;
      InputPiece y;
#pragma unroll
      for (int l = 0; l < LOADS; l++) {
        const int at = step / STEPS * IN_FEATURES + column + within * ONE_WARPS * STEP + l * 8;
        y.words[l] = is_inside(column, within) ? load16(input + at * 2) : make_uint4(0, 0, 0, 0);
      }
      y.order();
#pragma unroll
      for (int f = 0; f < FRAGMENTS; f++) multiply_piece(d[f], pieces[i][f], y);
      if (step + STAGES < steps) fetch(pieces[i], step + STAGES);
    }
  }
  sums.store(warp, lane, d);
  __syncthreads();
  const int output = first + tid;
  if (tid >= OUT_ROWS || output >= outputs) return;
  float y = sums.total(tid);
  if (biases)
    for (int j = 0; j < k; j++) {
      const float weight = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(weights) + j));
      y += weight * to_float(biases[static_cast<int64>(experts[j]) * outputs + output]);
    }
  if (added) y += to_float(load_coherent(added + output));
  out[output] = from_float(y);
}
#endif
