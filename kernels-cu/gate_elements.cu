// gate_elements: x[i] = sigmoid(gate[i]) · x[i].
//
//   x, gate  elem_t [count]
//
// Parallelisation: ACCESS elements a thread.
// Why this version: purely bound by memory, so one 16-byte load of each input and one store a thread.
#include "types.cuh"

static_assert(ACCESS == 1 || ACCESS == VEC, "ACCESS is one element or one 16-byte vector");

extern "C" __global__ void gate_elements(elem_t* x, const elem_t* gate, int64 count) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int64 start = (static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x) * ACCESS;
  if (start >= count) return;
  float values[ACCESS], gates[ACCESS];
  load_elems<ACCESS, true>(x + start, values);
  load_elems<ACCESS, true>(gate + start, gates);
#pragma unroll
  for (int i = 0; i < ACCESS; i++) values[i] /= 1 + __expf(-gates[i]);
  store_elems<ACCESS>(x + start, values);
}
