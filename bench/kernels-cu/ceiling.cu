// What the GPU's memory gives at most: kernels that read and do nothing else, see bench/ceilings.ts. They are no part of the
// package, so they are not in kernels-cu/.
//
//   data    uint4 [units]     sink    uint32 [1], never written: without it the compiler would drop the loads
//
// read_bulk has one thread a CTA ask the copy engine for RING_STAGES chunks of CHUNK_BYTES ahead: one CTA a multiprocessor
// is enough, as nothing but bytes in flight counts. It needs compute capability 9.0. read_loads is for the others: 16-byte
// loads, LOADS of them in flight a thread.

using uint16 = unsigned short;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void wait(uint32 barrier, uint32 parity) {
  uint32 done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (!done);
}

// `chunks` of CHUNK_BYTES each.
extern "C" __global__ void __launch_bounds__(32) read_bulk(const void* data, int64 chunks) {
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ uint64 arrived[RING_STAGES];
  if (threadIdx.x != 0) return;
  const uint32 slots = static_cast<uint32>(__cvta_generic_to_shared(ring));
  const uint32 barriers = static_cast<uint32>(__cvta_generic_to_shared(arrived));
  for (int i = 0; i < RING_STAGES; i++)
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barriers + 8 * i) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  uint32 asked = 0;
  for (int64 chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x, asked++) {
    const uint32 slot = asked % RING_STAGES, barrier = barriers + 8 * slot;
    if (asked >= RING_STAGES) wait(barrier, (asked / RING_STAGES + 1) & 1);
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(CHUNK_BYTES) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     slots + slot * CHUNK_BYTES),
                 "l"(static_cast<const unsigned char*>(data) + chunk * CHUNK_BYTES), "r"(CHUNK_BYTES), "r"(barrier)
                 : "memory");
  }
  // A CTA must not end before its copies have.
  for (uint32 i = asked < RING_STAGES ? 0 : asked - RING_STAGES; i < asked; i++)
    wait(barriers + 8 * (i % RING_STAGES), (i / RING_STAGES) & 1);
}
#endif

extern "C" __global__ void __launch_bounds__(1024) read_loads(const void* data, unsigned* sink, int64 units) {
  const uint4* from = static_cast<const uint4*>(data);
  const int64 stride = static_cast<int64>(gridDim.x) * blockDim.x;
  uint32 any = 0;
  for (int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; i + (LOADS - 1) * stride < units;
       i += LOADS * stride) {
    uint4 loaded[LOADS];
#pragma unroll
    for (int j = 0; j < LOADS; j++)
      asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(loaded[j].x), "=r"(loaded[j].y), "=r"(loaded[j].z), "=r"(loaded[j].w)
                   : "l"(from + i + j * stride));
#pragma unroll
    for (int j = 0; j < LOADS; j++) any ^= loaded[j].x ^ loaded[j].y ^ loaded[j].z ^ loaded[j].w;
  }
  // The data are no constant, so this happens almost never.
  if (any == 0x9e3779b9) *sink = any;
}

// A nearly normal value of standard deviation 1: a sum of four bytes.
__device__ __forceinline__ uint32 normal_bits(uint32 bytes) {
  const int sum = (bytes & 255) + (bytes >> 8 & 255) + (bytes >> 16 & 255) + (bytes >> 24);
  return __float_as_uint((sum - 510) * (1.0f / 147.8f)) >> 16;
}
__device__ __forceinline__ uint32 hash(uint32 z) {
  z = (z ^ (z >> 16)) * 0x85ebca6bu;
  z = (z ^ (z >> 13)) * 0xc2b2ae35u;
  return z ^ (z >> 16);
}

// Pairs of bfloat16 as matrices have them: how much of the data changes from one product to the next decides how hot the
// GPU gets, and so how fast it runs.
extern "C" __global__ void fill_random(void* data, int64 words) {
  const int64 stride = static_cast<int64>(gridDim.x) * blockDim.x;
  for (int64 i = static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += stride) {
    const uint32 number = static_cast<uint32>(i) * 2;
    static_cast<uint32*>(data)[i] =
        normal_bits(hash(number * 0x9e3779b9u)) | normal_bits(hash((number + 1) * 0x9e3779b9u)) << 16;
  }
}
