// The second of the two launches of a mixture of experts for one token: down, and the sum over its experts.
//
//   out[n] = added[n] + Σ over j: row n of expert chosen[j] · activated[j] + weights[j] · its bias
//
//   added    elem_t [N] or null; may be out                        biases    elem_t [E, N] or null
//   matrices, scales: see experts_few.cu                           all else: see experts_one.cu
//
// Parallelisation: grid (tiles of N); a CTA takes its rows of all experts, as if they were one matrix with k · K columns. Within a CTA as
// in experts_few.cu, with the token in all columns of the mma.
//
// Why this version: weights are asked for before the wait for experts_one, whose first CTA has published what was chosen by then.
#include "one_token.cuh"

#if !defined(MAX_PER_TOKEN)
#error "MAX_PER_TOKEN comes from src/backend/cuda/ops/experts-route.ts"
#endif

constexpr int OUT_ROWS = ROWS;

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
