// Activations by their codes.
#pragma once
#include "types.cuh"

#if !defined(ACTIVATION_SILU) || !defined(ACTIVATION_GELU) || !defined(ACTIVATION_GELU_TANH)
#error "ACTIVATION_SILU, ACTIVATION_GELU and ACTIVATION_GELU_TANH come from src/backend/cuda/ops/activation.ts"
#endif

enum Activation : int32 { SILU = ACTIVATION_SILU, GELU = ACTIVATION_GELU, GELU_TANH = ACTIVATION_GELU_TANH };
static_assert(SILU != GELU && GELU != GELU_TANH && GELU_TANH != SILU, "activations must have codes of their own");

__device__ __forceinline__ float silu(float x) {
#if defined(DTYPE_F32)
  return x / (1 + expf(-x));
#else
  return __fdividef(x, 1 + __expf(-x));
#endif
}

__device__ __forceinline__ float activate(float x, int32 activation) {
  switch (activation) {
    case SILU:
      return silu(x);
    case GELU:
      return 0.5f * x * (1 + erff(x * 0.70710678118654752f));
    default:
      return 0.5f * x * (1 + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  }
}

// act(gate, up) of an expert; a `limit` above 0 is that of gpt-oss, with `alpha`.
__device__ __forceinline__ float activate_pair(float gate, float up, int32 activation, float alpha, float limit) {
  if (limit <= 0) return activate(gate, activation) * up;
  gate = fminf(gate, limit);
  return (fminf(fmaxf(up, -limit), limit) + 1) * __fdividef(gate, 1 + __expf(-alpha * gate));
}
