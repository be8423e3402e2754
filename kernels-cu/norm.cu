// rms_norm, rms_norm_add, layer_norm over the last dimension; norm_projections over parts of it, and the sums that ranks exchange
// for that.
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

__device__ __forceinline__ float sum_of_squares(const Row& row, int width) {
  return sum_over_row(width, [&](int piece, int i) { return row.x[piece][i] * row.x[piece][i]; });
}

__device__ __forceinline__ void store_scaled(elem_t* out, const Row& row, const Row& weight, int width, float scale) {
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
  const Row row = RawRow(x + start, width).row();
  store_scaled(out + start, row, weights.row(), width, rsqrtf(sum_of_squares(row, width) / width + eps));
}

// A token's queries (part 0) or keys (part 1) in its packed projections.
struct Projections {
  int32 token, part, start, width;
  __device__ __forceinline__ Projections(int32 query_width, int32 key_width)
      : token(blockIdx.x), part(blockIdx.y), start(part == 0 ? 0 : query_width), width(part == 0 ? query_width : key_width) {}
  __device__ __forceinline__ int64 at(int32 query_width, int32 key_width) const {
    return static_cast<int64>(token) * (query_width + 2 * key_width) + start;
  }
};

// squares [tokens, 2]: those of this rank's queries, and keys. Grid (tokens, 2).
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    sum_projections(float* __restrict__ squares, const elem_t* __restrict__ qkv, int32 query_width, int32 key_width) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Projections of(query_width, key_width);
  const Row row = RawRow(qkv + of.at(query_width, key_width), of.width).row();
  const float sum = sum_of_squares(row, of.width);
  if (threadIdx.x == 0) squares[of.token * 2 + of.part] = sum;
}

// In place: RMSNorm over all of a token's queries, and all of its keys, of `ranks` ranks with as many heads each.
// squares [ranks, tokens, 2]; null: there is one rank. Grid (tokens, 2).
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    norm_projections(elem_t* __restrict__ qkv, const elem_t* __restrict__ query, const elem_t* __restrict__ key,
                     const float* squares, int32 ranks, int32 query_width, int32 key_width, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  const Projections of(query_width, key_width);
  const RawRow weights(of.part == 0 ? query : key, of.width);
  GRID_DEPENDENCY_WAIT();
  elem_t* const x = qkv + of.at(query_width, key_width);
  const Row row = RawRow(x, of.width).row();
  float sum = 0;
  if (squares == nullptr) sum = sum_of_squares(row, of.width);
  else
    for (int rank = 0; rank < ranks; rank++) sum += __ldcg(squares + (rank * gridDim.x + of.token) * 2 + of.part);
  store_scaled(x, row, weights.row(), of.width, rsqrtf(sum / (static_cast<float>(of.width) * ranks) + eps));
}

// out = (add_to + the norm of x) · the number at `factor`, 1 if that is null, rounded once; `out` may be `add_to`.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    rms_norm_add(elem_t* out, const elem_t* __restrict__ x, const elem_t* __restrict__ weight, const elem_t* add_to,
                 const float* __restrict__ factor, int32 width, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  const RawRow raw_weights(weight, width);
  const float of_sum = factor == nullptr ? 1.0f : *factor;
  GRID_DEPENDENCY_WAIT();
  const int64 start = static_cast<int64>(blockIdx.x) * width;
  const Row row = RawRow(x + start, width).row(), base = RawRow(add_to + start, width).row(), weights = raw_weights.row();
  const float scale = rsqrtf(sum_of_squares(row, width) / width + eps);
#pragma unroll
  for (int piece = 0; piece < ACCESSES; piece++) {
    float y[ACCESS];
#pragma unroll
    for (int i = 0; i < ACCESS; i++) y[i] = (base.x[piece][i] + row.x[piece][i] * scale * weights.x[piece][i]) * of_sum;
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
