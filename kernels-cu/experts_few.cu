// The products of a mixture of experts where few pairs share an expert: each item's at most 8 pairs by its expert's weights.
//
//   UP     activated[s, i] = act(gate, up), gate and up the products of x[token of pair s] by rows i and I + i of the expert
//   else   terms[pair, n]  = weight of the pair · (activated[s] · row n of the expert + bias)
//
//   out      elem_t: activated [pairs, I] by sorted pairs, or terms [pairs, N] by pairs
//   x        elem_t: [T, K], or activated [pairs, K]
//   matrices elem_t [E, N, K], N = 2 · I with UP            biases  elem_t [E, N] or null
//            or with MXFP4 codes [E, N, K / 2] and scales [E, N, K / 32], see mxfp4.cuh; or with FLOAT8 codes [E, N, K] and float
//            scales, one for BLOCK_ROWS × BLOCK_COLUMNS of each expert
//   sorted, weights, items: see experts_route.cu            outputs: I with UP, else N, a multiple of 8, as is K (of 32 with MXFP4)
//
// Parallelisation: grid (tiles of rows, items), so that CTAs that run together read neighbouring rows of an expert. A CTA has
// FRAGMENTS · 16 weight rows, with UP half of them gates and half what they gate. Its warps take every WARPSth step of columns and
// add up through shared memory in the order of the warps. Weights are the 16-wide side of mma.m16n8k16, pairs the 8-wide one: 1 to 8
// pairs cost the same. The order of k is free, so that what a 16-byte load of a row holds lands directly in fragments: 8 columns of a
// step of 32, or the codes of 32 columns of a step of 128.
//
// Why this version: all the cost is to read the active experts' weights once. A lane asks for most of its weights before it needs
// the first, so a CTA is little more than one round of loads, tens of KB in flight, and a multiprocessor has several of them. There
// is no ring in shared memory to fill: which expert comes next is known only when the router is done.
#include "activation.cuh"
#include "expert_items.cuh"
#include "expert_pieces.cuh"

#if !defined(FEW_WARPS) || !defined(FEW_PAIRS) || !defined(UP) || !defined(IN_FEATURES) || !defined(FRAGMENTS) || !defined(STAGES)
#error "FEW_WARPS, FEW_PAIRS, UP, IN_FEATURES, FRAGMENTS and STAGES come from src/backend/cuda/ops/experts-few.ts"
#endif
static_assert(FEW_PAIRS == 8, "pairs are the columns of one mma");

constexpr int THREADS = FEW_WARPS * WARP;
constexpr int STEPS = (IN_FEATURES + FEW_WARPS * STEP - 1) / (FEW_WARPS * STEP);
constexpr int ROWS = FRAGMENTS * 16;
constexpr int OUT_ROWS = UP ? ROWS / 2 : ROWS;
constexpr int DEPTH = STEPS < STAGES ? STEPS : STAGES;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    experts_few(elem_t* out, const elem_t* x, const unsigned char* __restrict__ matrices,
                const unsigned char* __restrict__ scales, const unsigned char* __restrict__ zeros,
                const elem_t* __restrict__ biases, const int32* sorted, const float* weights, const Item* items, int k,
                int outputs, int activation, float alpha, float limit) {
  __shared__ float partial[FEW_WARPS][FEW_PAIRS][ROWS + 1];
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
  // The fragment's row and pair of this lane, and its first columns.
  const int r = lane / 4, column = warp * STEP + lane % 4 * PIECE;
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Item item = load_item(items, blockIdx.y);
  if (item.count == 0) return;

  const AllScales all_scales = {scales, zeros};
  const int first = blockIdx.x * OUT_ROWS;
  const int rows = UP ? 2 * outputs : outputs;
  // Rows r and r + 8 of each fragment: with UP a gate and what it gates. Those past the end are computed as row 0 and not stored.
  WeightRows from[FRAGMENTS];
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int output = first + (UP ? f * 8 : f * 16 + half * 8) + r;
      const int64 row = static_cast<int64>(item.expert) * rows + (output < outputs ? output + (UP ? half * outputs : 0) : 0);
      from[f].set(half, matrices, all_scales, row, column);
    }
  // Columns of the mma without a pair are those of another, and not stored.
  const int s = item.first + (r < item.count ? r : 0);
  const elem_t* input = x + static_cast<int64>(UP ? load_coherent(sorted + s) / k : s) * IN_FEATURES + column;

  WeightPiece weight[DEPTH][FRAGMENTS];
  InputPiece v[DEPTH];
  // No branches, so that nothing keeps loads from being asked for together. Past the last column are the first ones times zeros.
  const auto fetch = [&](int step) {
    const bool is_inside = (step + 1) * FEW_WARPS * STEP <= IN_FEATURES || column + step * FEW_WARPS * STEP < IN_FEATURES;
    const int at = is_inside ? step * FEW_WARPS * STEP : -column;
    const int start = (step * FEW_WARPS + warp) * STEP;
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) weight[step % DEPTH][f] = from[f].load(at, start < IN_FEATURES ? start : 0);
    const uint32 mask = is_inside ? 0xffffffffu : 0;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const uint4 y = load16_coherent(input + at + i * 8);
      v[step % DEPTH].words[i] = make_uint4(y.x & mask, y.y & mask, y.z & mask, y.w & mask);
    }
  };
  float d[FRAGMENTS][2][4] = {};
#pragma unroll
  for (int step = 0; step < DEPTH; step++) fetch(step);
#pragma unroll
  for (int step = 0; step < STEPS; step++) {
    v[step % DEPTH].order();
#pragma unroll
    for (int f = 0; f < FRAGMENTS; f++) multiply_piece(d[f], weight[step % DEPTH][f], v[step % DEPTH]);
    if (step + DEPTH < STEPS) fetch(step + DEPTH);
  }
#pragma unroll
  for (int f = 0; f < FRAGMENTS; f++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      partial[warp][lane % 4 * 2 + i % 2][f * 16 + i / 2 * 8 + r] = d[f][0][i] + d[f][1][i];
  __syncthreads();

  for (int i = tid; i < item.count * OUT_ROWS; i += THREADS) {
    const int column = i / OUT_ROWS, row = i % OUT_ROWS, output = first + row;
    if (output >= outputs) continue;
    // With UP a fragment's rows are 8 gates and the 8 that they gate.
    const int at = UP ? row / 8 * 16 + row % 8 : row;
    float y = 0, up = 0;
#pragma unroll
    for (int w = 0; w < FEW_WARPS; w++) {
      y += partial[w][column][at];
      if (UP) up += partial[w][column][at + 8];
    }
    if (biases) {
      const elem_t* bias = biases + static_cast<int64>(item.expert) * rows + output;
      y += to_float(bias[0]);
      if (UP) up += to_float(bias[outputs]);
    }
    const int place = item.first + column;
    if (UP) {
      out[static_cast<int64>(place) * outputs + output] = from_float(activate_pair(y, up, activation, alpha, limit));
    } else {
      const int p = load_coherent(sorted + place);
      const float weight = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(weights) + p));
      out[static_cast<int64>(p) * outputs + output] = from_float(weight * y);
    }
  }
}
