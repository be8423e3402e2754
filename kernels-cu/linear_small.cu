// out[T, N] = x[T, K] · weight[N, K]ᵀ for at most 8 tokens, with a norm before the product and bias, activation or residual
// sum after it: the products of decode steps with few sequences.
//
//   x       elem_t [T, K]            gamma     elem_t [K], the norm's weight, with NORM
//   weight  elem_t [N, K]            bias      elem_t [N] or null
//   out     elem_t or float [T, outputs]       residual  elem_t [T, outputs] or null; may be out
// outputs is N, or N / 2 with GATED: act(first half) · second half.
//
// Parallelisation: a CTA takes tiles of TILE_ROWS weight rows, one every gridDim.x. A producer warp streams their weights
// through a ring of STAGES chunks of CHUNK columns in shared memory; WARPS warps take every WARPSth step of 32 columns and add
// up through shared memory in warp order, so that results repeat bit for bit and do not depend on the other tokens. The
// weights are the 16-wide side of mma.m16n8k16, the tokens the 8-wide side: 1 to 8 tokens cost about the same. The order of k
// is free, so a 16-byte load of 8 consecutive k lands directly in a fragment.
//
// Why this version: reading the weights is all the cost, and in a chain of such products what stands between one product's
// last byte and the next one's first. The ring is filled before the wait for the kernels before, as weights depend on none;
// what is left after it is x, a few mma, one barrier and the store. The norm is no pass of its own: two more mma a step give
// x · xᵀ, whose diagonal is the sum of squares, and its scale is applied to the finished sums.
//
// Measured on an H100 (read ceiling 3.13 TB/s), four products of a layer without attention, PDL, µs at 1 / 4 / 8 tokens:
// Qwen3-0.6B 13.3 / 14.7 / 16.3 (floor 10.0; cuBLASLt with norm and activation kernels 27.6 / 27.9 / 28.3), Qwen3-8B 136 /
// 148 / 151 (floor 123). These are from before the fence that follows a stage's reads; cuBLASLt's are of another run.
#include "activation.cuh"
#include "small_product.cuh"

#if !defined(OUT_FLOAT)
#error "OUT_FLOAT comes from src/backend/cuda/ops/small-linear.ts"
#endif

#if OUT_FLOAT
using out_t = float;
__device__ __forceinline__ void store_out(out_t* p, float y) { *p = y; }
#else
using out_t = elem_t;
__device__ __forceinline__ void store_out(out_t* p, float y) { *p = from_float(y); }
#endif

struct StoreOutputs {
  out_t* out;
  const elem_t *bias, *residual;
  int outputs, activation;
  float added, offset, up_offset;

  __device__ __forceinline__ int64 index(int token, int output) const { return static_cast<int64>(token) * outputs + output; }
  __device__ __forceinline__ void start(int, int) {}
  __device__ __forceinline__ void begin(int token, int output) {
    added = offset = up_offset = 0;
    if (residual) added = to_float(load_coherent(residual + index(token, output)));
    if (bias) {
      offset = to_float(bias[output]);
      if (GATED) up_offset = to_float(bias[outputs + output]);
    }
  }
  __device__ __forceinline__ void finish(int token, int output, float y, float up) {
    y += offset;
    if (activation >= 0) y = activate(y, activation);
    if (GATED) y *= up + up_offset;
    store_out(out + index(token, output), y + added);
  }
};

// See small_product for the grid. `activation` is its code, or −1 for none.
extern "C" __global__ void __launch_bounds__(CONSUMERS + WARP, MIN_CTAS)
    linear_small(out_t* out, const elem_t* x, const elem_t* __restrict__ weight, const elem_t* __restrict__ gamma,
                 const elem_t* __restrict__ bias, const elem_t* residual, int tokens, int outputs, int tiles, int activation,
                 int trigger_early, float eps) {
  StoreOutputs epilogue = {out, bias, residual, outputs, activation};
  small_product(x, weight, gamma, tokens, outputs, tiles, trigger_early, eps, epilogue);
}
