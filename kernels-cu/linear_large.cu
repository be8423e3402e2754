// linear_large: a matrix product of many tokens with what follows it, on Hopper's asynchronous tensor cores.
//
//   out  elem_t [tokens, outputs]    x  elem_t [tokens, inputs]    weight  elem_t [outputs, inputs], twice as many rows if GATED
//
//   y = x · weightᵀ (+ bias);    GATED: out = act(y[:outputs]) · y[outputs:], else out = act(y)
//
// Parallelisation: clusters of two CTAs, which stay, take tiles of 2 · TOKENS tokens and OUTPUTS rows of the weight in turn, in
// an order that keeps the operands of what is under way in L2. Each CTA has TOKENS of the tokens; the weight's rows are half
// fetched by each, for both. In a CTA one warp fetches K_TILE columns at a time, STAGES ahead and on into the next tile; two
// warpgroups multiply 64 tokens each. A gated tile takes half of its rows from the gates and half from what they gate, so that
// a thread has both of an output.
//
// Why this version: what cuBLASLt leaves to a kernel of its own, with a product twice as wide as its result written and read
// again, is done on the accumulators. The copy engine permutes a weight's rows as it fetches them, such that a thread's results
// are neighbours, stored 16 bytes at a time without a detour through shared memory. Products that nothing follows stay with
// cuBLASLt, beside which the same main loop is between 4% faster and 6% slower.
//
// Measured on an H100, silu, gated, 16,384 tokens, with the norm's kernel before: 24,576 × 4,096 in 5.28–5.32 ms, cuBLASLt with
// an activation kernel 5.56–5.60; 6,144 × 1,024 in 0.311–0.325, cuBLASLt 0.404–0.410.
#include "activation.cuh"
#include "cluster.cuh"
#include "tensor_map.cuh"
#include "wgmma_wide.cuh"

#if !defined(LARGE_TOKENS) || !defined(LARGE_K_TILE) || !defined(LARGE_GROUP) || !defined(LARGE_CONTROL_BYTES)
#error "LARGE_TOKENS, LARGE_K_TILE, LARGE_GROUP and LARGE_CONTROL_BYTES come from src/backend/cuda/ops/large-linear.ts"
#endif

constexpr int CONSUMERS = 2;
constexpr int CLUSTER = 2;
constexpr int WARPGROUP = 4 * WARP;
constexpr int TOKENS = LARGE_TOKENS;
constexpr int K_TILE = LARGE_K_TILE;
constexpr int GROUP = LARGE_GROUP;
constexpr int OUTPUTS = TILE_OUTPUTS;
// Columns of `out` in a tile.
constexpr int WIDTH = GATED ? OUTPUTS / 2 : OUTPUTS;
static_assert(TOKENS == 64 * CONSUMERS, "a warpgroup multiplies 64 tokens");
static_assert(K_TILE == 64, "a swizzled row is 64 elements");
static_assert(WIDTH % 32 == 0, "rows of the weight are permuted 32 at a time");

constexpr uint32 ROW_BYTES = K_TILE * 2, GROUP_BYTES = 8 * ROW_BYTES, X_BYTES = TOKENS * ROW_BYTES,
                 HALF_BYTES = OUTPUTS / 2 * ROW_BYTES, STAGE_BYTES = X_BYTES + 2 * HALF_BYTES;
static_assert(HALF_BYTES % 1024 == 0, "the swizzle repeats every 1,024 bytes");

struct Control {
  uint64 full[STAGES], empty[STAGES];
};
constexpr uint32 CONTROL_AT = STAGES * STAGE_BYTES;
static_assert(sizeof(Control) <= LARGE_CONTROL_BYTES, "the host must ask for room for Control");

using Ring = RingPosition<STAGES>;

// A cluster's tiles: pairs of token tiles in groups of GROUP, all columns of a group before the next.
struct Tiles {
  int pairs, columns;
  __device__ __forceinline__ Tiles(int tokens, int outputs)
      : pairs(ceil_div(tokens, CLUSTER * TOKENS)), columns(ceil_div(outputs, WIDTH)) {}
  __device__ __forceinline__ int count() const { return pairs * columns; }
  __device__ __forceinline__ void find(int tile, int rank, int& token, int& column) const {
    const int first = tile / (GROUP * columns) * GROUP, rows = min(GROUP, pairs - first);
    const int within = tile - first * columns;
    token = ((first + within % rows) * CLUSTER + rank) * TOKENS;
    column = within / rows * WIDTH;
  }
};

// One warp: fetches what this CTA's tiles need, and the other CTA's half of the weights.
__device__ __forceinline__ void produce(const TensorMap* x_map, const TensorMap* weight_map, uint32 shared, Control& control,
                                        const Tiles& tiles, int outputs, int steps, int rank) {
  const int lane = threadIdx.x % WARP;
  tensor_map_fence(x_map);
  tensor_map_fence(weight_map);
  Ring ring;
  for (int tile = blockIdx.x / CLUSTER; tile < tiles.count(); tile += gridDim.x / CLUSTER) {
    int token, column;
    tiles.find(tile, rank, token, column);
    const int weight_row = column + rank * (GATED ? outputs : OUTPUTS / 2);
    for (int k = 0; k < steps; k++) {
      barrier_wait(shared_address(&control.empty[ring.stage]), ring.phase ^ 1);
      if (lane == 0) {
        const uint32 full = shared_address(&control.full[ring.stage]), at = shared + ring.stage * STAGE_BYTES;
        barrier_expect(full, STAGE_BYTES);
        copy_box<2>(at, x_map, full, k * K_TILE, token);
        copy_box_multicast<5>(at + X_BYTES + rank * HALF_BYTES, weight_map, full, k * K_TILE, weight_row / 32,
                           (1 << CLUSTER) - 1);
      }
      __syncwarp();
      ring.advance();
    }
  }
}

__device__ __forceinline__ void add(float (&y)[8], const elem_t* terms) {
  float x[8];
  load_vec(terms, x);
#pragma unroll
  for (int i = 0; i < 8; i++) y[i] += x[i];
}

using Accumulators = float[OUTPUTS / 2];

// A warpgroup: its 64 tokens of each of this CTA's tiles.
__device__ __forceinline__ void consume(uint32 shared, Control& control, elem_t* out, const elem_t* bias, const Tiles& tiles,
                                        int tokens, int outputs, int steps, int rank, int warpgroup) {
  const int warp = threadIdx.x / WARP % 4, lane = threadIdx.x % WARP;
  // Lane i gives a stage back to CTA i of the cluster.
  const uint32 empty = address_in_rank(shared_address(&control.empty[0]), lane % CLUSTER);
  const auto release = [&](int stage) {
    if (lane < CLUSTER) barrier_arrive_there(empty + stage * sizeof(uint64));
  };
  Ring ring;
  for (int tile = blockIdx.x / CLUSTER; tile < tiles.count(); tile += gridDim.x / CLUSTER) {
    int token, column;
    tiles.find(tile, rank, token, column);
    Accumulators d;
#pragma unroll
    for (int i = 0; i < OUTPUTS / 2; i++) d[i] = 0;
    wgmma_pin(d);

    int before = 0;
#pragma unroll 1
    for (int k = 0; k < steps; k++) {
      barrier_wait(shared_address(&control.full[ring.stage]), ring.phase);
      const uint32 at = shared + ring.stage * STAGE_BYTES;
      const uint64 x = matrix_descriptor(at + warpgroup * 64 * ROW_BYTES, GROUP_BYTES),
                   weight = matrix_descriptor(at + X_BYTES, GROUP_BYTES);
      wgmma_fence();
      // A descriptor counts in units of 16 bytes.
#pragma unroll
      for (int i = 0; i < K_TILE / 16; i++) wgmma(d, x + i * 2, weight + i * 2, true);
      wgmma_commit();
      if (k > 0) {
        wgmma_wait_pending<1>();
        release(before);
      }
      before = ring.stage;
      ring.advance();
    }
    wgmma_wait<0>(d);
    release(before);

    const int row = token + warpgroup * 64 + warp * 16 + lane / 4, first_column = column + lane % 4 * 8;
#pragma unroll
    for (int i = 0; i < WIDTH / 16; i++) {
      const int block = i / 2, half = i % 2;
      if (column + block * 32 >= outputs) break;
      float y[8], up[8];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int at = block * 16 + j / 2 * 4 + half * 2 + j % 2;
        y[j] = d[at];
        if constexpr (GATED) up[j] = d[WIDTH / 2 + at];
      }
      if constexpr (BIAS) add(y, bias + first_column + block * 32);
      if constexpr (BIAS && GATED) add(up, bias + outputs + first_column + block * 32);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        y[j] = activate(y[j], ACTIVATION);
        if constexpr (GATED) y[j] *= up[j];
      }
      if (row + half * 8 < tokens)
        store_vec(out + static_cast<int64>(row + half * 8) * outputs + first_column + block * 32, y);
    }
  }
}

// Grid: two CTAs a cluster, at most one an SM. outputs and inputs are multiples of 32 and K_TILE. x_map has boxes of
// TOKENS rows, weight_map of half a tile's rows, permuted as TensorMaps.ofWeight says, both of K_TILE columns. bias is there if
// BIAS. Dynamic shared memory: CONTROL_AT + LARGE_CONTROL_BYTES.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
    linear_large(elem_t* __restrict__ out, const TensorMap* __restrict__ x_map, const TensorMap* __restrict__ weight_map,
                 const elem_t* __restrict__ bias, int tokens, int inputs, int outputs) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic + CONTROL_AT);
  GRID_DEPENDENCY_LAUNCH();
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&control.full[i]), 1);
      barrier_init(shared_address(&control.empty[i]), CLUSTER * CONSUMERS * 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  cluster_arrive();
  cluster_wait();
  GRID_DEPENDENCY_WAIT();

  const Tiles tiles(tokens, outputs);
  const int warpgroup = threadIdx.x / WARPGROUP, rank = blockIdx.x % CLUSTER;
  if (warpgroup == CONSUMERS) {
    release_registers<40>();
    if (threadIdx.x / WARP % 4 == 0)
      produce(x_map, weight_map, shared_address(dynamic), control, tiles, outputs, inputs / K_TILE, rank);
  } else {
    acquire_registers<232>();
    consume(shared_address(dynamic), control, out, bias, tiles, tokens, outputs, inputs / K_TILE, rank, warpgroup);
  }
  // A CTA stays while the other still writes to its shared memory.
  cluster_arrive();
  cluster_wait();
}
