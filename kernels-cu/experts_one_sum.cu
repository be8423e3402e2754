// The second of the two launches of a mixture of experts for one token: down, and the sum over its experts.
//
//   out[n] = added[n] + Σ over j: row n of expert chosen[j] · activated[j] + weights[j] · its bias
//
//   added    elem_t [N] or null; may be out                        biases    elem_t [E, N] or null
//   matrices, scales: see experts_few.cu                           all else: see experts_one.cu
//
// Parallelisation: grid (tiles of 8 outputs); a CTA takes its rows of all experts, as if they were one matrix with k · K columns. The
// halves of a fragment are two quads' columns of the same rows, and of the mma's columns the even ones have x of the first and the
// odd ones x of the second: what is wanted of the result are rows 0 to 7 of column 0, and rows 8 to 15 of column 1.
//
// Why this version: weights are asked for before the wait for experts_one, whose first CTA has published what was chosen by then. With 16
// rows a CTA there are so few that some multiprocessors have one and others two.
#include "one_token.cuh"

#if !defined(MAX_PER_TOKEN)
#error "MAX_PER_TOKEN comes from src/backend/cuda/ops/experts-route.ts"
#endif
static_assert(OUT_ROWS * MAX_PER_TOKEN <= THREADS, "a thread has the bias of one output of one expert");

// Quads of a step.
constexpr int STEP_QUADS = 2 * ONE_WARPS;

extern "C" __global__ void __launch_bounds__(THREADS, ONE_CTAS)
    experts_one_sum(elem_t* out, const elem_t* added, const elem_t* activated, const int32* chosen, const float* weights,
                    const unsigned char* __restrict__ matrices, const unsigned char* __restrict__ scales,
                    const unsigned char* __restrict__ zeros, const elem_t* __restrict__ biases, int k, int outputs) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  __shared__ float partial[ONE_WARPS][OUT_ROWS];
  __shared__ float terms[MAX_PER_TOKEN][OUT_ROWS];
  __shared__ int32 experts[MAX_PER_TOKEN];
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, r = lane / 4;
  // Steps run through the experts, one after another.
  const int quads = k * QUADS, steps = (quads + STEP_QUADS - 1) / STEP_QUADS;
  const StagedInput staged = {reinterpret_cast<uint4*>(dynamic), steps * STEP_QUADS * 4};
  GRID_DEPENDENCY_LAUNCH();
  if (tid < k) experts[tid] = load_coherent(chosen + tid);
  __syncthreads();

  // Rows past the end are computed as the first and not stored.
  const int first = blockIdx.x * OUT_ROWS, row = first + r < outputs ? first + r : 0;
  WeightPiece pieces[STAGES];
  const auto fetch = [&](WeightPiece& piece, int step) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int quad = (step * ONE_WARPS + warp) * 2 + half, j = quad / QUADS, within = quad - j * QUADS;
      piece.words[half] = make_uint4(0, 0, 0, 0), piece.scales[half] = 0;
      if (quad >= quads) continue;
      const int64 of = static_cast<int64>(experts[j]) * outputs + row;
      const int column = piece_column(within, lane);
      piece.words[half] = load16_stream(matrices + (of * IN_FEATURES + column) / PIECE * 16);
      RowScales of_row;
      of_row.set({scales, zeros}, of);
      piece.scales[half] = of_row.at(column, within * STEP);
    }
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++)
    if (i < steps) fetch(pieces[i], i);
  const int term = tid / OUT_ROWS, place = first + tid % OUT_ROWS;
  const bool has_term = biases && term < k && place < outputs;
  const float bias = has_term ? to_float(biases[static_cast<int64>(experts[term]) * outputs + place]) : 0;
  GRID_DEPENDENCY_WAIT();
  for (int i = tid; i < staged.pieces * LOADS; i += THREADS) {
    const int quad = i / (4 * LOADS), j = quad / QUADS, column = (i - j * QUADS * 4 * LOADS) * VEC;
    const bool is_inside = quad < quads && column < IN_FEATURES;
    staged.store(i, is_inside ? load16_coherent(activated + j * IN_FEATURES + column) : make_uint4(0, 0, 0, 0));
  }
  if (has_term) terms[term][tid % OUT_ROWS] = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(weights) + term)) * bias;
  const bool finishes = tid < OUT_ROWS && first + tid < outputs;
  float y = 0;
  if (finishes && added) y = to_float(load_coherent(added + first + tid));
  __syncthreads();

  float d[2][4] = {};
  for (int base = 0; base < steps; base += STAGES) {
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
      const int step = base + i;
      if (step >= steps) break;
      const int quad = (step * ONE_WARPS + warp) * 2 + r % 2;
      multiply_piece(d, pieces[i], staged.load(quad * 4 + lane % 4));
      if (step + STAGES < steps) fetch(pieces[i], step + STAGES);
    }
  }
  if (lane % 4 == 0) partial[warp][r] = d[0][0] + d[1][0] + d[0][3] + d[1][3];
  __syncthreads();
  if (!finishes) return;
#pragma unroll
  for (int w = 0; w < ONE_WARPS; w++) y += partial[w][tid];
  if (biases)
    for (int j = 0; j < k; j++) y += terms[j][tid];
  out[first + tid] = from_float(y);
}
