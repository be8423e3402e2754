// What the kernels of the gated delta rule share: extents, the ring of a convolution's inputs, functions of gates.
//
//   projected  elem_t [tokens, channels + value_heads · VALUE_DIM]: queries, keys, values (the channels), and z
//   gates      float  [tokens, 2 · value_heads]: b, then a
//   tails      elem_t [slots, layers, CONV_WIDTH, channels]: the channels of position p at p mod CONV_WIDTH
//   states     float  [slots, layers, value_heads, KEY_DIM, VALUE_DIM]
//
// A ring has room for one token more than a convolution looks back to, so a block may write a token's channels while another
// still reads those of the tokens before.
#pragma once
#include "types.cuh"

#if !defined(KEY_DIM) || !defined(VALUE_DIM)
#error "KEY_DIM and VALUE_DIM come from src/backend/cuda/ops/delta-dims.ts"
#endif
static_assert(KEY_DIM >= 16 && KEY_DIM <= 128 && (KEY_DIM & (KEY_DIM - 1)) == 0, "KEY_DIM is 16, 32, 64 or 128");
static_assert(VALUE_DIM >= 16 && VALUE_DIM <= 128 && (VALUE_DIM & (VALUE_DIM - 1)) == 0, "VALUE_DIM is 16, 32, 64 or 128");

constexpr float UNIT_EPSILON = 1e-6f;

struct Heads {
  int32 key_heads, value_heads;
  __device__ __forceinline__ int keys() const { return key_heads * KEY_DIM; }
  __device__ __forceinline__ int channels() const { return 2 * keys() + value_heads * VALUE_DIM; }
  // Elements of a token's projections.
  __device__ __forceinline__ int width() const { return channels() + value_heads * VALUE_DIM; }
  __device__ __forceinline__ int key_head_of(int value_head) const { return value_head / (value_heads / key_heads); }
  __device__ __forceinline__ bool is_first_of_key(int value_head) const { return value_head % (value_heads / key_heads) == 0; }
};

// One, two or four neighbouring elements, aligned to as many, as they are in memory.
template <int N>
struct Few {
  static_assert(N == 1 || N == 2 || N == 4, "an access is of a power of two up to 4");
  uint32 low, high;

  __device__ __forceinline__ void load(const elem_t* p) {
    if constexpr (N == 1) low = pack2(to_float(load_coherent(p)), 0);
    else if constexpr (N == 2) low = load_coherent(reinterpret_cast<const uint32*>(p));
    else asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "l"(p) : "memory");
  }
  __device__ __forceinline__ void unpack(float (&x)[N]) const {
    if constexpr (N == 1) {
      float unused;
      unpack2(low, x[0], unused);
    } else {
      unpack2(low, x[0], x[1]);
      if constexpr (N == 4) unpack2(high, x[2], x[3]);
    }
  }
};
template <int N>
__device__ __forceinline__ void load_few(const elem_t* p, float (&x)[N]) {
  Few<N> few;
  few.load(p);
  few.unpack(x);
}
template <int N>
__device__ __forceinline__ void store_few(elem_t* p, const float (&x)[N]) {
  if constexpr (N == 1) *p = from_float(x[0]);
  else if constexpr (N == 2) *reinterpret_cast<uint32*>(p) = pack2(x[0], x[1]);
  else *reinterpret_cast<uint2*>(p) = make_uint2(pack2(x[0], x[1]), pack2(x[2], x[3]));
}

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

__device__ __forceinline__ float load_float(const float* p) {
  return __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(p)));
}

__device__ __forceinline__ void add_scaled(float4& sum, const float4& x, float factor) {
  sum.x += x.x * factor, sum.y += x.y * factor, sum.z += x.z * factor, sum.w += x.w * factor;
}

// Logarithm of a token's decay.
__device__ __forceinline__ float log_decay(float a, float decay_log, float time_bias) {
  const float x = a + time_bias;
  return -expf(decay_log) * (x > 20 ? x : log1pf(expf(x)));
}
