// quantise_tokens: rows of activations as 8-bit floats with a factor each, for linear_float8.cu, with a norm ahead of it.
//
//   out      float8_e4m3 [tokens, width], each 64 columns in the order of quantised.cuh
//   factors  float [tokens]: x ≈ out · factor
//   x        elem_t [tokens, width]      gamma  elem_t [width], the norm's weight, or null
//
// width is a multiple of 128. The largest element of a row becomes ±448.
//
// Parallelisation: one block a row. A thread holds PIECES pieces of 16 columns in registers, and 4 neighbours have the 64 columns
// whose codes they exchange before each stores 16 bytes.
// Why this version: a row is read once and written once, with two reductions between; what it costs is latency.
#include "float8.cuh"

#if !defined(MAX_QUANTISE_THREADS) || !defined(PIECES)
#error "MAX_QUANTISE_THREADS and PIECES come from src/backend/cuda/ops/float8-inputs.ts"
#endif
constexpr int PIECE = 16;
constexpr float LARGEST = 448;
// Of a row of zeros.
constexpr float LEAST_FACTOR = 0x1p-100f;

// Lane i of four gets word i of lanes 0 to 3.
__device__ __forceinline__ uint4 transpose_quad(uint4 word) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32 first = __shfl_xor_sync(FULL_MASK, odd ? word.x : word.y, 1);
  const uint32 second = __shfl_xor_sync(FULL_MASK, odd ? word.z : word.w, 1);
  const uint32 a = odd ? first : word.x, b = odd ? word.y : first, c = odd ? second : word.z, d = odd ? word.w : second;
  const uint32 third = __shfl_xor_sync(FULL_MASK, high ? a : c, 2), fourth = __shfl_xor_sync(FULL_MASK, high ? b : d, 2);
  return make_uint4(high ? third : a, high ? fourth : b, high ? c : third, high ? d : fourth);
}

__device__ __forceinline__ void unpack_piece(const uint4 (&raw)[2], float (&x)[PIECE]) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    float v[VEC];
    unpack(raw[half], v);
#pragma unroll
    for (int i = 0; i < VEC; i++) x[half * VEC + i] = v[i];
  }
}

extern "C" __global__ void __launch_bounds__(MAX_QUANTISE_THREADS)
    quantise_tokens(unsigned char* __restrict__ out, float* __restrict__ factors, const elem_t* __restrict__ x,
                    const elem_t* __restrict__ gamma, int width, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  const auto start = [](int piece) { return static_cast<int>(piece * blockDim.x + threadIdx.x) * PIECE; };
  const auto load = [&](uint4 (&raw)[PIECES][2], const elem_t* from) {
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        raw[piece][half] = start(piece) < width ? load16_coherent(from + start(piece) + half * VEC) : make_uint4(0, 0, 0, 0);
  };
  uint4 weights[PIECES][2], raw[PIECES][2];
  if (gamma) load(weights, gamma);
  GRID_DEPENDENCY_WAIT();
  load(raw, x + static_cast<int64>(blockIdx.x) * width);
  float scale = 1;
  if (gamma) {
    float squares = 0;
#pragma unroll
    for (int piece = 0; piece < PIECES; piece++) {
      float v[PIECE];
      unpack_piece(raw[piece], v);
#pragma unroll
      for (int i = 0; i < PIECE; i++) squares += v[i] * v[i];
    }
    scale = rsqrtf(block_sum(squares) / width + eps);
  }
  // Of a piece, normalised.
  const auto values = [&](int piece, float (&v)[PIECE]) {
    unpack_piece(raw[piece], v);
    if (!gamma) return;
    float w[PIECE];
    unpack_piece(weights[piece], w);
#pragma unroll
    for (int i = 0; i < PIECE; i++) v[i] = v[i] * scale * w[i];
  };
  float largest = 0;
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) {
    float v[PIECE];
    values(piece, v);
#pragma unroll
    for (int i = 0; i < PIECE; i++) largest = fmaxf(largest, fabsf(v[i]));
  }
  const float factor = fmaxf(block_max(largest) / LARGEST, LEAST_FACTOR), inverse = 1 / factor;
  if (threadIdx.x == 0) factors[blockIdx.x] = factor;
  unsigned char* row = out + static_cast<int64>(blockIdx.x) * width;
#pragma unroll
  for (int piece = 0; piece < PIECES; piece++) {
    float v[PIECE];
    values(piece, v);
    uint32 word[4];
#pragma unroll
    for (int c = 0; c < 4; c++)
      word[c] = pack_float8x2(v[2 * c] * inverse, v[2 * c + 8] * inverse) |
                static_cast<uint32>(pack_float8x2(v[2 * c + 1] * inverse, v[2 * c + 9] * inverse)) << 16;
    const uint4 codes = transpose_quad(make_uint4(word[0], word[1], word[2], word[3]));
    if (start(piece) < width) store16(row + start(piece), codes);
  }
}
