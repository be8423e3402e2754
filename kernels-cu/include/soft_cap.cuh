// Logits that are kept within ±cap.
#pragma once
#include "types.cuh"

// Rounded the same wherever it is inlined: tokens are drawn from capped logits that were written, and from some that never are.
__device__ __forceinline__ float soft_cap(float logit, float cap) {
  return __fmul_rn(cap, tanhf(__fdiv_rn(logit, cap)));
}
