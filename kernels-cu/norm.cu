// rms_norm, rms_norm_add, layer_norm over the last dimension.
//
//   out, x, add_to  elem_t [rows, width]        weight, bias  elem_t [width], bias may be null
//
// Parallelisation: grid (rows), one block a row. A thread holds ACCESSES pieces of ACCESS consecutive elements in
// registers, so a row is read once whatever the number of passes over it; blockDim.x · ACCESSES · ACCESS >= width and
// blockDim.x <= MAX_THREADS, which leaves 128 registers a thread.
// Why this version: at decode sizes the cost is latency, so one load, one block reduction, one store; at prefill sizes the
// many small blocks keep 2,048 threads an SM with 16 bytes or more in flight each. Statistics are float32.
#include "types.cuh"

#if !defined(MAX_THREADS) || !defined(MAX_ACCESSES)
#error "MAX_THREADS and MAX_ACCESSES come from src/backend/cuda/ops/norm.ts"
#endif
static_assert(ACCESS == 1 || ACCESS == VEC, "ACCESS is one element or one 16-byte vector");
static_assert(ACCESSES >= 1 && ACCESSES <= MAX_ACCESSES, "ACCESSES must be 1 to MAX_ACCESSES, which fit in registers");
static_assert(MAX_THREADS % WARP == 0 && MAX_THREADS <= 1024, "MAX_THREADS must be whole warps of one block");

struct Row {
  float x[ACCESSES][ACCESS];
};

__device__ __forceinline__ int piece_start(int piece) { return (piece * blockDim.x + threadIdx.x) * ACCESS; }

#if ACCESS > 1
using raw_t = uint4;
__device__ __forceinline__ raw_t load_raw(const elem_t* from) { return load16_coherent(from); }
__device__ __forceinline__ void unpack_raw(raw_t raw, float (&x)[ACCESS]) { unpack(raw, x); }
#else
using raw_t = elem_t;
__device__ __forceinline__ raw_t load_raw(const elem_t* from) { return load_coherent(from); }
__device__ __forceinline__ void unpack_raw(raw_t raw, float (&x)[ACCESS]) { x[0] = to_float(raw); }
#endif

// A row as it is in memory, through L2: another kernel may have left older contents of x in L1, and loads of weights by any
// other kind of instruction are moved past the wait that they are to precede.
struct RawRow {
  raw_t raw[ACCESSES] = {};

  __device__ __forceinline__ RawRow(const elem_t* from, int width) {
#pragma unroll
    for (int piece = 0; piece < ACCESSES; piece++)
      if (piece_start(piece) < width) raw[piece] = load_raw(from + piece_start(piece));
  }
  // Elements past the width are 0.
  __device__ __forceinline__ Row row() const {
    Row row;
#pragma unroll
    for (int piece = 0; piece < ACCESSES; piece++) unpack_raw(raw[piece], row.x[piece]);
    return row;
  }
};

template <class Value>
__device__ __forceinline__ float sum_over_row(int width, Value value) {
  float sum = 0;
#pragma unroll
  for (int piece = 0; piece < ACCESSES; piece++)
#pragma unroll
    for (int i = 0; i < ACCESS; i++)
      if (piece_start(piece) < width) sum += value(piece, i);
  return block_sum(sum);
}

__device__ __forceinline__ void store_rms_normed(elem_t* out, const Row& row, const Row& weight, int width, float eps) {
  const float squares = sum_over_row(width, [&](int piece, int i) { return row.x[piece][i] * row.x[piece][i]; });
  const float scale = rsqrtf(squares / width + eps);
#pragma unroll
  for (int piece = 0; piece < ACCESSES; piece++) {
    float y[ACCESS];
#pragma unroll
    for (int i = 0; i < ACCESS; i++) y[i] = row.x[piece][i] * scale * weight.x[piece][i];
    if (piece_start(piece) < width) store_elems<ACCESS>(out + piece_start(piece), y);
  }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm(elem_t* __restrict__ out, const elem_t* __restrict__ x, const elem_t* __restrict__ weight, int32 width,
             float eps) {
  GRID_DEPENDENCY_LAUNCH();
  const RawRow weights(weight, width);
  GRID_DEPENDENCY_WAIT();
  const int64 start = static_cast<int64>(blockIdx.x) * width;
  store_rms_normed(out + start, RawRow(x + start, width).row(), weights.row(), width, eps);
}

// out = add_to + the norm of x, rounded once; `out` may be `add_to`.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_add(elem_t* out, const elem_t* __restrict__ x, const elem_t* __restrict__ weight, const elem_t* add_to,
                 int32 width, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  const RawRow raw_weights(weight, width);
  GRID_DEPENDENCY_WAIT();
  const int64 start = static_cast<int64>(blockIdx.x) * width;
  const Row row = RawRow(x + start, width).row(), base = RawRow(add_to + start, width).row(), weights = raw_weights.row();
  const float squares = sum_over_row(width, [&](int piece, int i) { return row.x[piece][i] * row.x[piece][i]; });
  const float scale = rsqrtf(squares / width + eps);
#pragma unroll
  for (int piece = 0; piece < ACCESSES; piece++) {
    float y[ACCESS];
#pragma unroll
    for (int i = 0; i < ACCESS; i++) y[i] = base.x[piece][i] + row.x[piece][i] * scale * weights.x[piece][i];
    if (piece_start(piece) < width) store_elems<ACCESS>(out + start + piece_start(piece), y);
  }
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    layer_norm(elem_t* __restrict__ out, const elem_t* __restrict__ x, const elem_t* __restrict__ weight,
               const elem_t* __restrict__ bias, int32 width, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  const RawRow raw_weights(weight, width), raw_biases(bias, bias == nullptr ? 0 : width);
  GRID_DEPENDENCY_WAIT();
  const int64 start = static_cast<int64>(blockIdx.x) * width;
  const Row row = RawRow(x + start, width).row(), weights = raw_weights.row(), biases = raw_biases.row();
  const float mean = sum_over_row(width, [&](int piece, int i) { return row.x[piece][i]; }) / width;
  const float squares = sum_over_row(width, [&](int piece, int i) {
    const float centred = row.x[piece][i] - mean;
    return centred * centred;
  });
  const float scale = rsqrtf(squares / width + eps);
#pragma unroll
  for (int piece = 0; piece < ACCESSES; piece++) {
    float y[ACCESS];
#pragma unroll
    for (int i = 0; i < ACCESS; i++)
      y[i] = (row.x[piece][i] - mean) * scale * weights.x[piece][i] + biases.x[piece][i];
    if (piece_start(piece) < width) store_elems<ACCESS>(out + start + piece_start(piece), y);
  }
}
