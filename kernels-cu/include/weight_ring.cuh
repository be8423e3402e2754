// Weights on their way to a block: a ring of slices of SLICE_ROWS rows × SLICE_COLUMNS columns in shared memory, filled by one
// warp, for WARPS warps that each take every WARPSth step of 32 columns.
//
// At most IN_FLIGHT slices are under way at a time, however many there is room for: what the block reads besides queues behind
// what has been requested, so there must be just enough of it to keep the memory busy.
#pragma once
#include "hopper.cuh"

#if !defined(RING_SLICES) || !defined(IN_FLIGHT) || !defined(SLICE_COLUMNS)
#error "RING_SLICES, IN_FLIGHT and SLICE_COLUMNS come from src/backend/cuda/ops/decode-layers.ts"
#endif

constexpr int WARPS = LINEAR_WARPS;
constexpr int CONSUMERS = WARPS * WARP;
constexpr int STEP = 32 * WARPS;  // columns of a step of all warps: one 16-byte load of each lane of a quad
constexpr int SLICE_ROWS = 8, SLICE_STEPS = SLICE_COLUMNS / STEP;
static_assert(SLICE_STEPS * STEP == SLICE_COLUMNS, "a slice must be a whole number of steps");
// A lane of 8 reads rows 2i and 2i + 1: the padding keeps them on different banks.
constexpr uint32 SLICE_ROW_BYTES = SLICE_COLUMNS * 2, SLICE_PITCH = SLICE_ROW_BYTES + LINEAR_ROW_PADDING;
static_assert(SLICE_PITCH % 128 == 64, "neighbouring rows must start half a line apart");
static_assert(IN_FLIGHT <= RING_SLICES, "what is under way must have room");

struct WeightRing {
  unsigned char slices[RING_SLICES][SLICE_ROWS * SLICE_PITCH];
  uint64 full[RING_SLICES], empty[RING_SLICES];

  // By one thread; a __syncthreads must follow.
  __device__ __forceinline__ void init() {
    for (int i = 0; i < RING_SLICES; i++)
      barrier_init(shared_address(&full[i]), 1), barrier_init(shared_address(&empty[i]), WARPS);
    barrier_init_fence();
  }
};

// The warp that fills the ring; its lanes call together.
struct RingProducer {
  WeightRing& ring;
  RingPosition<RING_SLICES> next, landing;
  int issued = 0;

  // SLICE_ROWS rows of SLICE_COLUMNS columns at `source`, `pitch` elements from one row to the next.
  __device__ __forceinline__ void fetch(const elem_t* source, int pitch) {
    const int lane = threadIdx.x % WARP;
    barrier_wait(shared_address(&ring.empty[next.stage]), next.phase ^ 1);
    if (issued < IN_FLIGHT) {
      issued++;
    } else {
      barrier_wait(shared_address(&ring.full[landing.stage]), landing.phase);
      landing.advance();
    }
    const uint32 full = shared_address(&ring.full[next.stage]);
    if (lane == 0) barrier_expect(full, SLICE_ROWS * SLICE_ROW_BYTES);
    __syncwarp();
    if (lane < SLICE_ROWS)
      copy_bytes(shared_address(ring.slices[next.stage]) + lane * SLICE_PITCH, source + static_cast<int64>(lane) * pitch,
                 SLICE_ROW_BYTES, full);
    next.advance();
  }
};

// A warp that empties it; its lanes call together. All warps take all slices.
struct RingConsumer {
  WeightRing& ring;
  RingPosition<RING_SLICES> next;
  int oldest = 0;  // that has been taken and not given back

  // The warp's columns of the next slice: a lane gets 8 of row lane / 4 in each step.
  __device__ __forceinline__ void take(uint4 (&weights)[SLICE_STEPS]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    barrier_wait(shared_address(&ring.full[next.stage]), next.phase);
    const unsigned char* source = ring.slices[next.stage] + lane / 4 * SLICE_PITCH + (warp * 32 + lane % 4 * 8) * 2;
#pragma unroll
    for (int s = 0; s < SLICE_STEPS; s++) weights[s] = load16(source + s * STEP * 2);
    next.advance();
  }

  // Gives the oldest `count` slices back: many together, as the fence waits for all that the warp has under way.
  __device__ __forceinline__ void give_back(int count) {
    // The barrier alone does not order the reads before the copy engine's next write (small_product.cuh).
    async_proxy_fence();
    __syncwarp();
    for (int i = 0; i < count; i++) {
      if (threadIdx.x % WARP == 0) barrier_arrive(shared_address(&ring.empty[oldest]));
      if (++oldest == RING_SLICES) oldest = 0;
    }
  }
};
