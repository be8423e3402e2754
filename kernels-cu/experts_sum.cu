// experts_sum: out[t, h] = added[t, h] + Σ terms[t · k + j, h], j ascending.
// gate_rows: y[t, i] = sigmoid(gate · norm(x[t])) · y[t, i], the norm with weights gamma, or none where they are null.
//
//   out, added  elem_t [T, H]; added may be null or out        terms        elem_t [T · k, H]
//   y           elem_t [T, I]       x  elem_t [T, H]           gate, gamma  elem_t [H]
//
// Parallelisation: experts_sum: grid (tokens, pieces of a row), ACCESS elements a thread. gate_rows: a block a token.
// Why this version: bound by memory, and for one token by latency. So experts_sum asks for all terms before it adds the first, and
// gate_rows takes in the norm and the product, which as ops of their own are three launches.
#include "types.cuh"

static_assert(ACCESS == 1 || ACCESS == VEC, "ACCESS is one element or one 16-byte vector");

extern "C" __global__ void experts_sum(elem_t* out, const elem_t* added, const elem_t* terms, int k, int hidden) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
  if (column >= hidden) return;
  const int64 token = blockIdx.x;
  float sum[ACCESS] = {};
  if (added) load_elems<ACCESS, true>(added + token * hidden + column, sum);
  const elem_t* from = terms + token * k * hidden + column;
  constexpr int AHEAD = 8;
  for (int j = 0; j < k; j += AHEAD) {
    float term[AHEAD][ACCESS];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (j + i < k) load_elems<ACCESS, true>(from + static_cast<int64>(j + i) * hidden, term[i]);
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (j + i < k)
#pragma unroll
        for (int e = 0; e < ACCESS; e++) sum[e] += term[i][e];
  }
  store_elems<ACCESS>(out + token * hidden + column, sum);
}

extern "C" __global__ void gate_rows(elem_t* y, const elem_t* x, const elem_t* __restrict__ gate, const elem_t* __restrict__ gamma,
                                     int hidden, int width, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int step = blockDim.x * ACCESS, first = threadIdx.x * ACCESS;
  const elem_t* const token = x + static_cast<int64>(blockIdx.x) * hidden;
  // Of squares, and of products with the gate.
  float2 sums = make_float2(0, 0);
  for (int i = first; i < hidden; i += step) {
    float values[ACCESS], weights[ACCESS], factors[ACCESS];
    load_elems<ACCESS, true>(token + i, values);
    load_elems<ACCESS>(gate + i, weights);
    if (gamma) load_elems<ACCESS>(gamma + i, factors);
#pragma unroll
    for (int e = 0; e < ACCESS; e++) {
      sums.x += values[e] * values[e];
      sums.y += values[e] * weights[e] * (gamma ? factors[e] : 1);
    }
  }
  sums = block_reduce(sums, make_float2(0, 0), [](float2 s) { return make_float2(warp_sum(s.x), warp_sum(s.y)); });
  const float logit = gamma ? sums.y * rsqrtf(sums.x / hidden + eps) : sums.y;
  const float factor = 1 / (1 + __expf(-logit));
  elem_t* const row = y + static_cast<int64>(blockIdx.x) * width;
  for (int i = first; i < width; i += step) {
    float values[ACCESS];
    load_elems<ACCESS, true>(row + i, values);
#pragma unroll
    for (int e = 0; e < ACCESS; e++) values[e] *= factor;
    store_elems<ACCESS>(row + i, values);
  }
}
