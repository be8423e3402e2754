// cap_logits: logits[i] = cap · tanh(logits[i] / cap), in place.
//
//   logits  float [count]
//
// Parallelisation: grid (pieces of everything), ACCESS elements a thread.
// Why this version: bound by memory; where tokens are drawn in the head's epilogue, logits are capped there instead.
#include "soft_cap.cuh"

static_assert(ACCESS == 1 || ACCESS == VEC, "ACCESS is one element or one 16-byte vector");

extern "C" __global__ void cap_logits(elem_t* logits, int64 count, float cap) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int64 start = (static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x) * ACCESS;
  if (start >= count) return;
  float y[ACCESS];
  load_elems<ACCESS, true>(logits + start, y);
#pragma unroll
  for (int i = 0; i < ACCESS; i++) y[i] = soft_cap(y[i], cap);
  store_elems<ACCESS>(logits + start, y);
}
