// reduce_add: residual[i] += the sum over ranks of branch[i], the same bits on every rank.
//
//   residual  elem_t [size]                    branch  elem_t [size], of this rank; with ACCESS > 1 both are 16-byte aligned and
//                                              `size` is of whole vectors
//   peers     of each rank, uint4 [2 buffers, RANKS, capacity] at `offset`: zeros wherever nothing is under way
//   rounds    uint32 [PEER_BLOCKS]                given_up  uint32, in host memory
//
// Parallelisation: a 16-byte vector a thread at a time, in whole warps over all blocks; a thread has one vector, or a few where
// there are more than fit all blocks that may be.
// Why this version: a message of a few KB takes as long as the link's latency, so it goes over the link once, without a flag or a
// barrier after it: all-reduce by pushing to everyone, where zeros mean "not yet" (as Lamport's algorithms do with a value
// that is never sent; SGLang's and FlashInfer's one-shot all-reduce are of this kind). A word of zeros is sent as −0 in its
// upper half, which changes no sum but that of zeros alone. RANKS − 1 times the message leave each GPU: beyond some
// MB a ring is faster, where ranks are many earlier.
// Sums are float32 over ranks in their order, then the residual; one rounding.
//
// add_copied makes the same sum of messages that copy engines have brought, see copied-sums.ts.
#include "peers.cuh"

static_assert(ACCESS == 1 || ACCESS == VEC, "ACCESS is one element or one 16-byte vector");

// With what is never sent replaced; this rank's own part too, or ranks would differ in the sign of zeros.
__device__ __forceinline__ uint32 sent(uint32 word) { return word == 0 ? 0x80000000u : word; }
__device__ __forceinline__ uint4 sent(uint4 v) { return make_uint4(sent(v.x), sent(v.y), sent(v.z), sent(v.w)); }
// All of its words have come.
__device__ __forceinline__ bool is_whole(uint4 v) { return v.x != 0 && v.y != 0 && v.z != 0 && v.w != 0; }


// The nth vector of `size` elements: whole, or of those that exist; the others are 0.
__device__ __forceinline__ uint4 load_vector(const elem_t* p, int n, int size) {
  if constexpr (ACCESS > 1) return load16_coherent(p + static_cast<int64>(n) * VEC);
  float x[VEC] = {};
#pragma unroll
  for (int k = 0; k < VEC; k++)
    if (n * VEC + k < size) x[k] = to_float(load_coherent(p + n * VEC + k));
  return pack(x);
}
__device__ __forceinline__ void store_vector(elem_t* p, int n, int size, const float (&x)[VEC]) {
  if constexpr (ACCESS > 1) {
    store_vec(p + static_cast<int64>(n) * VEC, x);
  } else {
#pragma unroll
    for (int k = 0; k < VEC; k++)
      if (n * VEC + k < size) p[n * VEC + k] = from_float(x[k]);
  }
}

extern "C" __global__ void __launch_bounds__(PEER_THREADS, PEER_BLOCKS_PER_SM)
    reduce_add(const __grid_constant__ PeerTable peers, elem_t* residual, const elem_t* branch, uint32* rounds,
               const uint32* given_up, int64 offset, int32 capacity, int32 rank, int32 size) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int vectors = ceil_div(size, VEC);
  const uint32 round = this_round(rounds);
  const auto place = [&](int of, int from) {
    uint4* all = reinterpret_cast<uint4*>(peers.memory[of] + offset);
    return all + static_cast<int64>(round % 2 * RANKS + from) * capacity;
  };
  for (int i = first_item(); i < vectors; i += item_step()) {
    const uint4 own = sent(load_vector(branch, i, size));
#pragma unroll
    for (int n = 0; n < RANKS - 1; n++) store16_system(place(other_rank(rank, n), rank) + i, own);
  }
  Patience patience(given_up);
  for (int i = first_item(); i < vectors; i += item_step()) {
    // Read again: that costs nothing while the others' parts are on their way.
    const uint4 own = sent(load_vector(branch, i, size));
    float before[VEC], sum[VEC];
    unpack(load_vector(residual, i, size), before);
    uint4 parts[RANKS];
    while (true) {
      bool missing = false;
#pragma unroll
      for (int from = 0; from < RANKS; from++) parts[from] = from == rank ? own : load16_system(place(rank, from) + i);
#pragma unroll
      for (int from = 0; from < RANKS; from++) missing |= !is_whole(parts[from]);
      if (!missing) break;
      patience.spend();
    }
#pragma unroll
    for (int from = 0; from < RANKS; from++) {
      if (from != rank) store16(place(rank, from) + i, make_uint4(0, 0, 0, 0));
      float part[VEC];
      unpack(parts[from], part);
#pragma unroll
      for (int k = 0; k < VEC; k++) sum[k] = from == 0 ? part[k] : sum[k] + part[k];
    }
#pragma unroll
    for (int k = 0; k < VEC; k++) sum[k] += before[k];
    store_vector(residual, i, size, sum);
  }
  end_round(rounds, round);
}

// add_copied: the same sum, of terms that the other ranks' copy engines store into this GPU's memory.
//
//   copies    uint4 [RANKS − 1, capacity], the other ranks' terms in their order, in this GPU's memory
//   peers     of each rank, uint32 [RANKS] at `offset`, by the rank that writes: the last sum that its terms are here for
//
// The stream has waited for this rank's own copies when the kernel starts, so it is the kernel that says that they are done.
// A rank waits only when what others wait for is done, whatever their kernels keep busy. `sequence` is of this sum, from 1;
// numbers may wrap.
extern "C" __global__ void __launch_bounds__(PEER_THREADS, PEER_BLOCKS_PER_SM)
    add_copied(const __grid_constant__ PeerTable peers, elem_t* residual, const elem_t* branch, const uint4* copies,
               const uint32* given_up, int64 offset, int32 capacity, int32 rank, int32 sequence, int32 size) {
  GRID_DEPENDENCY_WAIT();
  const auto done = [&](int of, int from) { return reinterpret_cast<uint32*>(peers.memory[of] + offset) + from; };
  if (threadIdx.x < RANKS - 1) {
    const int other = other_rank(rank, threadIdx.x);
    if (blockIdx.x == 0) store_release_system(done(other, rank), sequence);
    Patience patience(given_up);
    while (static_cast<int32>(load_acquire_system(done(rank, other)) - sequence) < 0) patience.spend();
  }
  __syncthreads();
  const int vectors = size / VEC;
  for (int i = first_item(); i < vectors; i += item_step()) {
    float before[VEC], sum[VEC];
    unpack(load16_coherent(residual + static_cast<int64>(i) * VEC), before);
#pragma unroll
    for (int from = 0; from < RANKS; from++) {
      const int64 copy = static_cast<int64>(from > rank ? from - 1 : from) * capacity + i;
      float part[VEC];
      unpack(from == rank ? load16_coherent(branch + static_cast<int64>(i) * VEC) : load16_coherent(copies + copy), part);
#pragma unroll
      for (int k = 0; k < VEC; k++) sum[k] = from == 0 ? part[k] : sum[k] + part[k];
    }
#pragma unroll
    for (int k = 0; k < VEC; k++) sum[k] += before[k];
    store_vec(residual + static_cast<int64>(i) * VEC, sum);
  }
}

// add: residual[i] += branch[i], of which something else has made the sum over ranks. Grid: pieces of PEER_THREADS vectors.
extern "C" __global__ void __launch_bounds__(PEER_THREADS)
    add(elem_t* residual, const elem_t* branch, int32 size) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int i = blockIdx.x * PEER_THREADS + threadIdx.x;
  if (i >= ceil_div(size, VEC)) return;
  float x[VEC], y[VEC];
  unpack(load_vector(residual, i, size), x);
  unpack(load_vector(branch, i, size), y);
#pragma unroll
  for (int k = 0; k < VEC; k++) x[k] += y[k];
  store_vector(residual, i, size, x);
}
