// experts_sum: out[t, h] = added[t, h] + Σ terms[t · k + j, h], j ascending.  gate_rows: x[t, i] = sigmoid(gate[t]) · x[t, i].
//
//   out, added  elem_t [T, H]; added may be null or out        terms  elem_t [T · k, H]
//   x           elem_t [T, I]                                  gate   float [T]
//
// Parallelisation: grid (tokens, pieces of a row), ACCESS elements a thread.
// Why this version: bound by memory, and for one token by latency, so all terms are asked for before the first is added.
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

extern "C" __global__ void gate_rows(elem_t* x, const float* gate, int width) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
  if (column >= width) return;
  const float logit = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(gate) + blockIdx.x));
  const float factor = 1 / (1 + __expf(-logit));
  elem_t* row = x + static_cast<int64>(blockIdx.x) * width + column;
  float y[ACCESS];
  load_elems<ACCESS, true>(row, y);
#pragma unroll
  for (int i = 0; i < ACCESS; i++) y[i] *= factor;
  store_elems<ACCESS>(row, y);
}
