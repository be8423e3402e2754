// y[T, N] = x[T, K] · weight[N, K]ᵀ for at most 8 tokens, with a norm before the product: the part that the kernels of such
// products share. What happens to y is an Epilogue's:
//
//   start(token, tokens)      after the wait for the kernels before; this thread will finish outputs of this token
//   begin(token, output)      before a tile's product: what must be loaded for the output
//   finish(token, output, y, up)   its value, and with GATED that of the other half
//
// A thread finishes outputs of one token, in ascending order. See linear_small.cu for how the product is computed.
#pragma once
#include "hopper.cuh"

#if !defined(IN_FEATURES) || !defined(TILE_ROWS) || !defined(CHUNK) || !defined(STAGES) || !defined(STAGED_TOKENS)
#error "IN_FEATURES, TILE_ROWS, CHUNK, STAGES and STAGED_TOKENS come from src/backend/cuda/ops/small-linear.ts"
#endif
#if !defined(NORM) || !defined(GATED) || !defined(MIN_CTAS) || !defined(LINEAR_SHARED_BYTES)
#error "NORM, GATED, MIN_CTAS and LINEAR_SHARED_BYTES come from src/backend/cuda/ops/small-linear.ts"
#endif

constexpr int WARPS = LINEAR_WARPS;
constexpr int CONSUMERS = WARPS * WARP;
constexpr int MAX_TOKENS = LINEAR_MAX_TOKENS;
constexpr int STEP = LINEAR_STEP;
static_assert(STEP == 32, "a step is one 16-byte load of each lane of a quad");
constexpr int CHUNKS = (IN_FEATURES + CHUNK - 1) / CHUNK;
constexpr int CHUNK_STEPS = CHUNK / (STEP * WARPS);
static_assert(IN_FEATURES % STEP == 0, "K must be a whole number of steps");
static_assert(CHUNK_STEPS * STEP * WARPS == CHUNK, "a chunk must be a whole number of steps for each warp");
static_assert(TILE_ROWS == 16 || (TILE_ROWS == 8 && !GATED), "a tile is 16 rows, or 8 that are not gated");
static_assert(MAX_TOKENS == 8, "mma has 8 columns");

// A lane of 8 reads rows 2i and 2i + 1: the padding keeps them on different banks.
constexpr uint32 ROW_BYTES = CHUNK * 2, ROW_PITCH = ROW_BYTES + LINEAR_ROW_PADDING, STAGE_BYTES = TILE_ROWS * ROW_PITCH;
// Of the last chunk, which may have fewer columns.
constexpr uint32 LAST_ROW_BYTES = (IN_FEATURES - (CHUNKS - 1) * CHUNK) * 2;
static_assert(ROW_PITCH % 128 == 64, "neighbouring rows must start half a line apart");
constexpr int OUT_ROWS = GATED ? TILE_ROWS / 2 : TILE_ROWS;
constexpr int SUM_PITCH = TILE_ROWS + LINEAR_SUM_PADDING;
// x stays in registers where there is room for it; where there is not, x of up to STAGED_TOKENS is in shared memory, and x of
// more is read again for each tile.
constexpr int STEPS = CHUNKS * CHUNK_STEPS;
constexpr bool KEEPS_X = STEPS <= 16;
// gamma is requested before the wait where there is room for both.
constexpr bool GAMMA_EARLY = NORM && STEPS <= 8;

struct Shared {
  unsigned char stages[STAGES][STAGE_BYTES];
#if STAGED_TOKENS > 0
  unsigned char x[STAGED_TOKENS][IN_FEATURES * 2];
#endif
  float partial[2][WARPS][MAX_TOKENS][SUM_PITCH];
  float squares[WARPS][MAX_TOKENS];
  uint64 full[STAGES], empty[STAGES];
};
static_assert(sizeof(Shared) <= LINEAR_SHARED_BYTES, "the host must ask for room for Shared");

using Position = RingPosition<STAGES>;

// False for steps of the last chunk that begin where its columns have ended. All lanes of a warp have the same steps.
__device__ __forceinline__ bool is_inside(int chunk, int column) {
  return IN_FEATURES % CHUNK == 0 || chunk < CHUNKS - 1 || column < IN_FEATURES;
}

__device__ __forceinline__ void produce(Shared& shared, const elem_t* weight, int outputs, int tiles) {
  const int lane = threadIdx.x % WARP;
  Position at;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row = GATED ? tile * 8 + lane % 8 + (lane < 8 ? 0 : outputs) : tile * TILE_ROWS + lane;
    const elem_t* source = weight + static_cast<int64>(row) * IN_FEATURES;
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++, at.advance()) {
      barrier_wait(shared_address(&shared.empty[at.stage]), at.phase ^ 1);
      const uint32 full = shared_address(&shared.full[at.stage]);
      const uint32 bytes = chunk < CHUNKS - 1 ? ROW_BYTES : LAST_ROW_BYTES;
      if (lane == 0) barrier_expect(full, TILE_ROWS * bytes);
      __syncwarp();
      if (lane < TILE_ROWS)
        copy_bytes(shared_address(shared.stages[at.stage]) + lane * ROW_PITCH, source + chunk * CHUNK, bytes, full);
    }
  }
}

// For a block of CONSUMERS + WARP threads and LINEAR_SHARED_BYTES of dynamic shared memory. Grid: at most one CTA a tile, all
// resident. `tiles` is N / TILE_ROWS, `outputs` N or with GATED N / 2. With trigger_early the next kernel may start at once,
// else when all weights have been requested.
template <class Epilogue>
__device__ __forceinline__ void small_product(const elem_t* x, const elem_t* weight, const elem_t* gamma, int tokens,
                                              int outputs, int tiles, int trigger_early, float eps, Epilogue& epilogue) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  if (trigger_early) GRID_DEPENDENCY_LAUNCH();
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
  if (threadIdx.x == CONSUMERS) {
    for (int i = 0; i < STAGES; i++)
      barrier_init(shared_address(&shared.full[i]), 1), barrier_init(shared_address(&shared.empty[i]), WARPS);
    barrier_init_fence();
  }
  __syncthreads();
  if (warp == WARPS) {
    produce(shared, weight, outputs, tiles);
    GRID_DEPENDENCY_LAUNCH();
    return;
  }

  const int k0 = warp * STEP + c * 8;
  const auto column_of = [&](int chunk, int s) { return chunk * CHUNK + s * STEP * WARPS + k0; };
  const auto has_step = [&](int chunk, int s) { return is_inside(chunk, column_of(chunk, s)); };
  [[maybe_unused]] const auto load_gamma = [&](int chunk, int s) {
    return has_step(chunk, s) ? load16_stream(gamma + column_of(chunk, s)) : make_uint4(0, 0, 0, 0);
  };
  [[maybe_unused]] uint4 scale[GAMMA_EARLY ? CHUNKS : 1][CHUNK_STEPS];
  if constexpr (GAMMA_EARLY)
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int s = 0; s < CHUNK_STEPS; s++) scale[i][s] = load_gamma(i, s);
  GRID_DEPENDENCY_WAIT();

  epilogue.start(threadIdx.x / OUT_ROWS, tokens);

  // From here on: x and residual through L2, as kernels that run beside this one may have left older lines in L1.
  const elem_t* mine = x + static_cast<int64>(r) * IN_FEATURES;
  const auto load_x = [&](int chunk, int s) {
    return r < tokens && has_step(chunk, s) ? load16_coherent(mine + column_of(chunk, s)) : make_uint4(0, 0, 0, 0);
  };
#if STAGED_TOKENS > 0
  for (int i = threadIdx.x; i < tokens * (IN_FEATURES / VEC); i += CONSUMERS)
    store16(shared.x[0] + i * 16, load16_coherent(x + static_cast<int64>(i) * VEC));
  named_barrier_sync(1, CONSUMERS);
  [[maybe_unused]] const auto load_again = [&](int chunk, int s) {
    return r < tokens && has_step(chunk, s) ? load16(shared.x[r % STAGED_TOKENS] + column_of(chunk, s) * 2)
                                            : make_uint4(0, 0, 0, 0);
  };
#else
  [[maybe_unused]] const auto load_again = load_x;
#endif
  [[maybe_unused]] float square[2][4] = {};
  [[maybe_unused]] const auto add_squares = [&](uint4 v) {
    mma_m16n8k16(square[0], v.x, 0, v.y, 0, v.x, v.y);
    mma_m16n8k16(square[1], v.z, 0, v.w, 0, v.z, v.w);
  };
  [[maybe_unused]] uint4 kept[KEEPS_X ? CHUNKS : 1][CHUNK_STEPS];
  if constexpr (KEEPS_X) {
#pragma unroll
    for (int i = 0; i < CHUNKS; i++)
#pragma unroll
      for (int s = 0; s < CHUNK_STEPS; s++) kept[i][s] = load_x(i, s);
    if constexpr (NORM)
#pragma unroll
      for (int i = 0; i < CHUNKS; i++)
#pragma unroll
        for (int s = 0; s < CHUNK_STEPS; s++) {
          add_squares(kept[i][s]);
          kept[i][s] = multiply(kept[i][s], GAMMA_EARLY ? scale[i % (GAMMA_EARLY ? CHUNKS : 1)][s] : load_gamma(i, s));
        }
  }

  Position at;
  int buffer = 0;
  [[maybe_unused]] bool first = true;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, buffer ^= 1) {
    // The output that this thread finishes.
    const int token = threadIdx.x / OUT_ROWS, row = threadIdx.x % OUT_ROWS;
    const bool finishes = token < tokens;
    if (finishes) epilogue.begin(token, tile * OUT_ROWS + row);
    float d[4][4] = {};  // four chains hide the latency of mma
    const auto multiply_chunk = [&](int chunk, const uint4(&v)[CHUNK_STEPS]) {
      barrier_wait(shared_address(&shared.full[at.stage]), at.phase);
      const unsigned char* rows = shared.stages[at.stage] + r * ROW_PITCH + k0 * 2;
#pragma unroll
      for (int s = 0; s < CHUNK_STEPS; s++) {
        // What lies behind the last columns is an earlier chunk's, and its products with zeros may be no numbers.
        if (!has_step(chunk, s)) continue;
        const uint4 low = load16(rows + s * STEP * WARPS * 2);
        const uint4 high = TILE_ROWS == 16 ? load16(rows + 8 * ROW_PITCH + s * STEP * WARPS * 2) : make_uint4(0, 0, 0, 0);
        mma_m16n8k16(d[s % 2 * 2], low.x, high.x, low.y, high.y, v[s].x, v[s].y);
        mma_m16n8k16(d[s % 2 * 2 + 1], low.z, high.z, low.w, high.w, v[s].z, v[s].w);
      }
      // The barrier alone does not order these reads before the copy engine's next write: without the fence whole rows came
      // out wrong whenever the ring was full.
      async_proxy_fence();
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&shared.empty[at.stage]));
      at.advance();
    };
    if constexpr (KEEPS_X) {
#pragma unroll
      for (int i = 0; i < CHUNKS; i++) multiply_chunk(i, kept[i]);
    } else {
      uint4 next[CHUNK_STEPS];
#pragma unroll
      for (int s = 0; s < CHUNK_STEPS; s++) next[s] = load_again(0, s);
#pragma unroll 1
      for (int i = 0; i < CHUNKS; i++) {
        uint4 v[CHUNK_STEPS];
#pragma unroll
        for (int s = 0; s < CHUNK_STEPS; s++) {
          v[s] = next[s];
          if (i + 1 < CHUNKS) next[s] = load_again(i + 1, s);
          if constexpr (NORM) {
            if (first) add_squares(v[s]);
            v[s] = multiply(v[s], load_gamma(i, s));
          }
        }
        multiply_chunk(i, v);
      }
    }
    if (NORM && first && c == r / 2)
      shared.squares[warp][r] = r % 2 ? square[0][1] + square[1][1] : square[0][0] + square[1][0];
    first = false;
#pragma unroll
    for (int i = 0; i < TILE_ROWS / 4; i++)
      shared.partial[buffer][warp][c * 2 + i % 2][i / 2 * 8 + r] = d[0][i] + d[1][i] + d[2][i] + d[3][i];
    named_barrier_sync(1, CONSUMERS);
    if (!finishes) continue;
    float sum = 0, up = 0, factor = 1;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      sum += shared.partial[buffer][w][token][row];
      if (GATED) up += shared.partial[buffer][w][token][row + 8];
    }
    if constexpr (NORM) {
      float total = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) total += shared.squares[w][token];
      factor = rsqrtf(total / IN_FEATURES + eps);
    }
    epilogue.finish(token, tile * OUT_ROWS + row, sum * factor, up * factor);
  }
}
