// Tensor-core and asynchronous-copy instructions of compute capability 8.0 and newer, for 16-bit elem_t.
//
// Fragments of the m16n8k16 product D[16, 8] += A[16, 16] · B[16, 8], with r = lane / 4 and c = lane % 4:
//   A (row-major)  a0: row r, k 2c..2c+1   a1: row r + 8, same k   a2: row r, k + 8   a3: row r + 8, k + 8
//   B (k-major)    b0: k 2c..2c+1, column r                         b1: k + 8, column r
//   D (float)      d0, d1: row r, columns 2c, 2c + 1                d2, d3: row r + 8, same columns
#pragma once
#include "types.cuh"

static_assert(sizeof(elem_t) == 2, "tensor-core kernels take bfloat16 or float16");

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0,
                                             uint32 b1) {
#if defined(DTYPE_BF16)
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same of float16, whatever elem_t is.
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], uint32 a0, uint32 a1, uint32 a2, uint32 a3, uint32 b0,
                                                 uint32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Products of the elements of two registers, rounded, and of four and four.
__device__ __forceinline__ uint32 multiply2(uint32 a, uint32 b) {
  uint32 y;
#if defined(DTYPE_BF16)
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
#else
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
#endif
  return y;
}
__device__ __forceinline__ uint4 multiply(uint4 a, uint4 b) {
  return make_uint4(multiply2(a.x, b.x), multiply2(a.y, b.y), multiply2(a.z, b.z), multiply2(a.w, b.w));
}

// Transposes an 8×8 matrix of 16-bit elements held one row a quad: lane (r, c) gives row r, columns 2c..2c+1 and gets
// row r of the transpose.
__device__ __forceinline__ uint32 transpose_8x8(uint32 x) {
  uint32 y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

__device__ __forceinline__ uint32 shared_address(const void* p) {
  return static_cast<uint32>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ uint4 load16_shared(uint32 address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ uint2 load8_shared(uint32 address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}
__device__ __forceinline__ uint32 load4_shared(uint32 address) {
  uint32 word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
__device__ __forceinline__ void store4_shared(uint32 address, uint32 word) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}
__device__ __forceinline__ void store8_shared(uint32 address, uint2 v) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ void store16_shared(uint32 address, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

// Four 8×8 matrices from shared memory; lanes 8i..8i+7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void ldmatrix_x4(uint32 (&m)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32 (&m)[4], uint32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(address)
               : "memory");
}

// Four 8×8 matrices to shared memory, each transposed; lanes as in ldmatrix_x4.
__device__ __forceinline__ void stmatrix_x4_trans(uint32 address, const uint32 (&m)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(m[0]), "r"(m[1]),
               "r"(m[2]), "r"(m[3])
               : "memory");
}
// One, transposed; lanes 0 to 7 give its rows.
__device__ __forceinline__ void stmatrix_trans(uint32 address, uint32 m) {
  asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(m) : "memory");
}

// Copies 16 bytes to shared memory, or writes zeros and reads nothing when !valid.
__device__ __forceinline__ void cp_async16(uint32 target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's groups are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
