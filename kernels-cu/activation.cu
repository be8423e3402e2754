// gated_activation: out[t, i] = act(gate_up[t, i]) · gate_up[t, width + i].  plain_activation: out[i] = act(x[i]).
// multiply_columns: x[t, i] = x[t, i] · factors[t, first + i].
//
//   out  elem_t [tokens, width]        gate_up  elem_t [tokens, 2 · width]        x  elem_t [count], or [tokens, width]
//   factors  elem_t [tokens, stride]
//
// Parallelisation: gated, columns: grid (tokens, pieces of a row); plain: grid (pieces of everything); ACCESS elements a thread.
// Why this version: purely bound by memory, so one 16-byte load of each input and one store a thread. The 16-bit types
// use the hardware's approximate exponential, whose error is far below their rounding.
#include "activation.cuh"

static_assert(ACCESS == 1 || ACCESS == VEC, "ACCESS is one element or one 16-byte vector");

extern "C" __global__ void gated_activation(elem_t* __restrict__ out, const elem_t* __restrict__ gate_up, int32 width,
                                            int32 activation) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
  if (column >= width) return;
  const elem_t* row = gate_up + static_cast<int64>(blockIdx.x) * 2 * width;
  float gate[ACCESS], up[ACCESS];
  load_elems<ACCESS>(row + column, gate);
  load_elems<ACCESS>(row + width + column, up);
#pragma unroll
  for (int i = 0; i < ACCESS; i++) gate[i] = activate(gate[i], activation) * up[i];
  store_elems<ACCESS>(out + static_cast<int64>(blockIdx.x) * width + column, gate);
}

// `out` may be `x`.
extern "C" __global__ void plain_activation(elem_t* out, const elem_t* x, int64 count, int32 activation) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int64 start = (static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x) * ACCESS;
  if (start >= count) return;
  float y[ACCESS];
  load_elems<ACCESS>(x + start, y);
#pragma unroll
  for (int i = 0; i < ACCESS; i++) y[i] = activate(y[i], activation);
  store_elems<ACCESS>(out + start, y);
}

extern "C" __global__ void multiply_columns(elem_t* x, const elem_t* factors, int32 width, int32 stride, int32 first) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * ACCESS;
  if (column >= width) return;
  elem_t* row = x + static_cast<int64>(blockIdx.x) * width + column;
  float y[ACCESS], by[ACCESS];
  load_elems<ACCESS, true>(row, y);
  load_elems<ACCESS, true>(factors + static_cast<int64>(blockIdx.x) * stride + first + column, by);
#pragma unroll
  for (int i = 0; i < ACCESS; i++) y[i] *= by[i];
  store_elems<ACCESS>(row, y);
}
