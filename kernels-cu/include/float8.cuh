// 8-bit floats: float8_e4m3, made of floats and widened to float16.
#pragma once
#include "types.cuh"

// Sign, 4 bits of exponent, 3 of mantissa; no infinity ("e4m3fn").
struct float8_t {
  unsigned char bits;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define FLOAT8_IN_HARDWARE
#endif

// The codes of two values, the first in the low byte: the nearest, ties to even; beyond ±448 that of ±448.
__device__ __forceinline__ uint16 pack_float8x2(float first, float second) {
#if defined(FLOAT8_IN_HARDWARE)
  uint16 codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(second), "f"(first));
  return codes;
#else
  const auto code = [](float x) -> uint32 {
    const uint32 bits = __float_as_uint(x), sign = bits >> 24 & 0x80;
    if (x != x) return 0x7f;
    const float size = fminf(fabsf(x), 448.0f);
    // Below the smallest normal value, 2^−6, values are 2^−9 apart. Above, 20 bits of float's mantissa are rounded off.
    if (size < 0x1p-6f) return sign | static_cast<uint32>(__float2int_rn(size * 0x1p9f));
    const uint32 exact = __float_as_uint(size), rounded = exact + 0x7ffff + (exact >> 20 & 1);
    return sign | ((rounded >> 20) - ((127 - 7) << 3));
  };
  return static_cast<uint16>(code(first) | code(second) << 8);
#endif
}

// The values of four codes as pairs of float16. Without the instruction, NaN becomes 480: nothing else does.
__device__ __forceinline__ void unpack_float8x4(uint32 codes, uint32& low, uint32& high) {
#if defined(FLOAT8_IN_HARDWARE)
  asm("{\n.reg .b16 l, h;\nmov.b32 {l, h}, %2;\ncvt.rn.f16x2.e4m3x2 %0, l;\ncvt.rn.f16x2.e4m3x2 %1, h;\n}"
      : "=r"(low), "=r"(high)
      : "r"(codes));
#else
  // Sign and the other bits where float16 has them: a value 2^−8 as large, as exponents are counted from 15, not from 7.
  const auto widen = [](uint32 shifted) {
    const uint32 scaled = (shifted & 0x80008000u) | (shifted >> 1 & 0x3f803f80u);
    uint32 pair;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(scaled), "r"(0x5c005c00u));
    return pair;
  };
  low = widen(__byte_perm(codes, 0, 0x1404));
  high = widen(__byte_perm(codes, 0, 0x3424));
#endif
}
