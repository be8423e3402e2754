// Element type, vector access, reductions and launch-dependency macros shared by every kernel.
//
// Compiled by NVRTC alone: no CUDA or standard headers. One of DTYPE_BF16, DTYPE_F16 and DTYPE_F32 selects elem_t, the
// type of weights, activations and KV cache; arithmetic is done in float.
#pragma once

using uint16 = unsigned short;
using int32 = int;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "Octavo's kernels need compute capability 8.0 or newer"
#endif
#if !defined(WARP) || !defined(VECTOR_BYTES)
#error "WARP and VECTOR_BYTES come from src/backend/cuda/ops/kernel-variants.ts"
#endif
#if defined(DTYPE_BF16) + defined(DTYPE_F16) + defined(DTYPE_F32) != 1
#error "define exactly one of DTYPE_BF16, DTYPE_F16 and DTYPE_F32"
#endif

// Programmatic dependent launch. All have no effect unless the launch asks for it.
//  - GRID_DEPENDENCY_WAIT() returns when the kernels before have finished. Every kernel calls it, and before it writes
//    anything or reads what another kernel writes, so that finishing implies that all before it have finished.
//  - GRID_DEPENDENCY_LAUNCH() lets the next kernel start, up to its own wait, once every CTA has called it or ended.
//  - GRID_DEPENDENCY_PUBLISH() makes what this thread has written, and what was written before the last barrier, visible to
//    kernels that have not started. To be called before GRID_DEPENDENCY_LAUNCH() or the end.
// Published are batch metadata, slots' block tables and the KV cache: attention_decode reads them before its wait, and delta_decode
// metadata. It may,
// after whatever kernels, as those that write them let nothing start that could read them too early:
//  - prepare_batch, scatter and attention_decode let the next kernel start when they have published what they wrote. They
//    write after their wait, so from then on all that was written before them can be seen, too.
//  - rope_store is followed by a kernel that waits for it before it lets others start.
//  - decode_layers lets the next kernel start in its last layer, before it has stored that one's keys and values. Nothing reads
//    them before its wait in this step (attention_decode with READS_ONLY, which reads what another layer stored, does not), and
//    prepare_batch lets nothing start before all ahead of it have finished.
//  - States and rings, which delta_decode reads before its wait, are what steps before have written: likewise.
//  - Copies and fills are no kernels: nothing starts before they are done.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define GRID_DEPENDENCY_WAIT() asm volatile("griddepcontrol.wait;" ::: "memory")
#define GRID_DEPENDENCY_LAUNCH() asm volatile("griddepcontrol.launch_dependents;")
#define GRID_DEPENDENCY_PUBLISH() __threadfence()
#else
#define GRID_DEPENDENCY_WAIT()
#define GRID_DEPENDENCY_LAUNCH()
#define GRID_DEPENDENCY_PUBLISH()
#endif

static_assert(WARP == 32, "WARP must be 32: lane masks are 32 bits");
constexpr uint32 FULL_MASK = 0xffffffffu;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

constexpr __host__ __device__ int ceil_div(int a, int b) { return (a + b - 1) / b; }

// ── element type ────────────────────────────────────────────────────────────────────────────────────────────────────

#if defined(DTYPE_F32)
using elem_t = float;
__device__ __forceinline__ float to_float(elem_t x) { return x; }
__device__ __forceinline__ elem_t from_float(float x) { return x; }
#else
struct elem_t {
  uint16 bits;
};
#if defined(DTYPE_BF16)
__device__ __forceinline__ float to_float(elem_t x) { return __uint_as_float(static_cast<uint32>(x.bits) << 16); }
// Rounds to nearest, ties to even.
__device__ __forceinline__ elem_t from_float(float x) {
  elem_t y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
// Two elements of one 32-bit register, the first in the low half.
__device__ __forceinline__ uint32 pack2(float first, float second) {
  uint32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
__device__ __forceinline__ void unpack2(uint32 word, float& first, float& second) {
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
}
#else
__device__ __forceinline__ float to_float(elem_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
// Rounds to nearest, ties to even.
__device__ __forceinline__ elem_t from_float(float x) {
  elem_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
// Two elements of one 32-bit register, the first in the low half.
__device__ __forceinline__ uint32 pack2(float first, float second) {
  uint32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
}
__device__ __forceinline__ void unpack2(uint32 word, float& first, float& second) {
  first = to_float({static_cast<uint16>(word)});
  second = to_float({static_cast<uint16>(word >> 16)});
}
#endif
#endif

// ── 16-byte vectors ─────────────────────────────────────────────────────────────────────────────────────────────────

// Elements of one 16-byte access.
static_assert(VECTOR_BYTES == sizeof(uint4), "VECTOR_BYTES must be those of a uint4, 16");
constexpr int VEC = VECTOR_BYTES / static_cast<int>(sizeof(elem_t));
static_assert(VEC == 4 || VEC == 8, "elem_t must have 2 or 4 bytes");

__device__ __forceinline__ uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
__device__ __forceinline__ void store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

// Read-only for the whole kernel and used once: kept out of L1.
__device__ __forceinline__ uint4 load16_stream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

__device__ __forceinline__ uint2 load8_stream(const void* p) {
  uint2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}
__device__ __forceinline__ uint32 load4_stream(const void* p) {
  uint32 word;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(word) : "l"(p));
  return word;
}

// From L2. Of memory that one kernel reads, the next writes and a third reads again, the third may find the older contents in
// L1 when it was started early and the first ran beside it: loads through the read-only path have given them.
__device__ __forceinline__ uint4 load16_coherent(const void* p) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}
__device__ __forceinline__ uint32 load_coherent(const uint32* p) {
  uint32 word;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(word) : "l"(p) : "memory");
  return word;
}
__device__ __forceinline__ int32 load_coherent(const int32* p) {
  return static_cast<int32>(load_coherent(reinterpret_cast<const uint32*>(p)));
}
__device__ __forceinline__ elem_t load_coherent(const elem_t* p) {
  elem_t x;
#if defined(DTYPE_F32)
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(x) : "l"(p) : "memory");
#else
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(x.bits) : "l"(p) : "memory");
#endif
  return x;
}

__device__ __forceinline__ void unpack(uint4 v, float (&x)[VEC]) {
#if defined(DTYPE_F32)
  x[0] = __uint_as_float(v.x), x[1] = __uint_as_float(v.y), x[2] = __uint_as_float(v.z), x[3] = __uint_as_float(v.w);
#else
  unpack2(v.x, x[0], x[1]), unpack2(v.y, x[2], x[3]), unpack2(v.z, x[4], x[5]), unpack2(v.w, x[6], x[7]);
#endif
}

__device__ __forceinline__ uint4 pack(const float (&x)[VEC]) {
#if defined(DTYPE_F32)
  return make_uint4(__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3]));
#else
  return make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
#endif
}

// p must be 16-byte aligned.
__device__ __forceinline__ void load_vec(const elem_t* p, float (&x)[VEC]) { unpack(load16(p), x); }
__device__ __forceinline__ void store_vec(elem_t* p, const float (&x)[VEC]) { store16(p, pack(x)); }

// N elements: one 16-byte access when N is VEC (p must be aligned), else one by one. With COHERENT, as load16_coherent has it.
template <int N, bool COHERENT = false>
__device__ __forceinline__ void load_elems(const elem_t* p, float (&x)[N]) {
  if constexpr (N == VEC) {
    unpack(COHERENT ? load16_coherent(p) : load16(p), x);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = to_float(COHERENT ? load_coherent(p + i) : p[i]);
  }
}

template <int N>
__device__ __forceinline__ void store_elems(elem_t* p, const float (&x)[N]) {
  if constexpr (N == VEC) {
    store_vec(p, x);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) p[i] = from_float(x[i]);
  }
}

// ── reductions: the order of additions depends on the thread count alone, so results repeat bit for bit ─────────────

// Every lane gets the result. WIDTH lanes (a power of two) make a group.
template <int WIDTH = WARP>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_MASK, x, offset, WIDTH);
  return x;
}

template <int WIDTH = WARP>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = WIDTH / 2; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, offset, WIDTH));
  return x;
}

// The result of the warps' results, by `reduce`, which gives every lane of a warp that of all; `none` changes no result. Every
// thread of the block gets it; all of them must call. Blocks have 1 to 32 full warps.
template <typename T, typename Reduce>
__device__ __forceinline__ T block_reduce(T x, T none, Reduce reduce) {
  __shared__ T partial[WARP];
  x = reduce(x);
  __syncthreads();
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = x;
  __syncthreads();
  return reduce(threadIdx.x % WARP < blockDim.x / WARP ? partial[threadIdx.x % WARP] : none);
}
__device__ __forceinline__ float block_sum(float x) {
  return block_reduce(x, 0.0f, [](float y) { return warp_sum(y); });
}
__device__ __forceinline__ float block_max(float x) {
  return block_reduce(x, -infinity(), [](float y) { return warp_max(y); });
}

// The sum over the block, and over the threads before this one. All threads must call.
__device__ __forceinline__ float block_exclusive_sum(float x, float& before) {
  __shared__ float partial[WARP];
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
  for (int offset = 1; offset < WARP; offset *= 2) {
    const float other = __shfl_up_sync(FULL_MASK, x, offset);
    if (lane >= offset) x += other;
  }
  __syncthreads();
  if (lane == WARP - 1) partial[warp] = x;
  __syncthreads();
  before = __shfl_up_sync(FULL_MASK, x, 1);
  if (lane == 0) before = 0;
  float total = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x) / WARP; i++) {
    if (i == warp) before += total;
    total += partial[i];
  }
  return total;
}
