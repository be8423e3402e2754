// Keys: unsigned integers in the order of scores, with the token that has the score.
#pragma once
#include "types.cuh"

// The greater of two; 0x7fffffff, a NaN, when one is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

// Unsigned integers in the order of the floats; −0 and 0 give the same.
__device__ __forceinline__ uint32 ordered(float x) {
  const uint32 bits = __float_as_uint(x + 0.0f);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float unordered(uint32 key) {
  return __uint_as_float(key ^ (key >> 31 ? 0x80000000u : 0xffffffffu));
}

// The greatest float below x; −inf for −inf.
__device__ __forceinline__ float just_below(float x) {
  if (x == -infinity()) return x;
  return x == 0 ? -0x1p-149f : unordered(ordered(x) - 1);
}

// Greater for greater values; among equals, for the lower token. Never 0, and less than NOT_A_NUMBER.
constexpr uint64 NOT_A_NUMBER = ~uint64{0};
__device__ __forceinline__ uint64 rank_key(float value, int token) {
  return static_cast<uint64>(ordered(value)) << 32 | ~static_cast<uint32>(token);
}
__device__ __forceinline__ int key_token(uint64 key) { return static_cast<int>(~static_cast<uint32>(key)); }
__device__ __forceinline__ float key_value(uint64 key) { return unordered(static_cast<uint32>(key >> 32)); }

// From L2: other kernels and blocks raise keys.
__device__ __forceinline__ uint64 load_key(const uint64* p) {
  uint64 key;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(key) : "l"(p) : "memory");
  return key;
}

// Every lane gets the greatest; all of them must call.
__device__ __forceinline__ uint32 warp_max_uint(uint32 x) {
  uint32 most;
  asm volatile("redux.sync.max.u32 %0, %1, 0xffffffff;" : "=r"(most) : "r"(x));
  return most;
}
__device__ __forceinline__ uint64 warp_max_key(uint64 key) {
  const uint32 score = static_cast<uint32>(key >> 32);
  const uint32 most = warp_max_uint(score);
  return static_cast<uint64>(most) << 32 | warp_max_uint(score == most ? static_cast<uint32>(key) : 0);
}

// Every thread of the block gets the greatest key; all of them must call.
__device__ __forceinline__ uint64 block_max_key(uint64 key) {
  return block_reduce(key, uint64{0}, [](uint64 other) { return warp_max_key(other); });
}
