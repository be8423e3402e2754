// A product of up to 8 tokens as a stage of a longer launch: y = x · weightᵀ with a norm before and bias, activation or residual
// sum after it, as small_product.cuh computes it, bit for bit.
//
// x comes from the blocks' exchange (tagged.cuh) and y goes there, as weights come from the ring (weight_ring.cuh). Some of the
// weights are taken to registers before x is there: what is left then is a few mma, one barrier and the store.
#pragma once
#include "activation.cuh"
#include "tagged.cuh"
#include "weight_ring.cuh"

#if !defined(CTAS) || !defined(SUM_ROWS) || !defined(LAYER_REGISTERS)
#error "CTAS, SUM_ROWS and LAYER_REGISTERS come from src/backend/cuda/ops/decode-layers.ts"
#endif

constexpr int MAX_TOKENS = LINEAR_MAX_TOKENS;
static_assert(MAX_TOKENS == 8, "mma has 8 columns");
constexpr int SUM_PITCH = SUM_ROWS + LINEAR_SUM_PADDING;
// Steps whose x is requested together.
constexpr int STEPS_AT_ONCE = 12;

// y = x[IN] · weight[ROWS, IN]ᵀ, in tiles of TILE_ROWS rows, one every CTAS. GATED: act(first half) · second half.
template <int IN_, int ROWS_, int TILE_ROWS_, int GATED_>
struct Product {
  static constexpr int IN = IN_, ROWS = ROWS_, TILE_ROWS = TILE_ROWS_;
  static constexpr bool GATED = GATED_;
  static constexpr int OUTPUTS = GATED ? ROWS / 2 : ROWS, OUT_ROWS = GATED ? TILE_ROWS / 2 : TILE_ROWS;
  static constexpr int TILES = ROWS / TILE_ROWS, ROUNDS = ceil_div(TILES, CTAS);
  static constexpr int CHUNKS = IN / SLICE_COLUMNS, STEPS = CHUNKS * SLICE_STEPS;
  static constexpr int HALVES = TILE_ROWS / SLICE_ROWS, TILE_SLICES = CHUNKS * HALVES;
  // Tiles whose sums are finished together, by a thread an output.
  static constexpr int GROUP = CONSUMERS / MAX_TOKENS / OUT_ROWS < ROUNDS ? CONSUMERS / MAX_TOKENS / OUT_ROWS : ROUNDS;
  static constexpr int GROUP_OUTPUTS = GROUP * OUT_ROWS, GROUPS = ceil_div(ROUNDS, GROUP);
  static_assert(CHUNKS * SLICE_COLUMNS == IN, "K must be a whole number of slices");
  static_assert(TILES * TILE_ROWS == ROWS, "N must be a whole number of tiles");
  static_assert(TILE_ROWS == 16 || (TILE_ROWS == 8 && !GATED), "a tile is 16 rows, or 8 that are not gated");
  static_assert(GROUP * TILE_ROWS <= SUM_ROWS, "the host must leave room for a group's sums");

  // Tiles of this block.
  static __device__ __forceinline__ int tiles() { return (TILES - static_cast<int>(blockIdx.x) + CTAS - 1) / CTAS; }
  static __device__ __forceinline__ bool has(int tile) { return TILES % CTAS == 0 || tile < tiles(); }

  // The producer's part, in the order in which the slices are taken.
  static __device__ __forceinline__ void fetch(RingProducer& producer, const elem_t* weight) {
    for (int tile = blockIdx.x; tile < TILES; tile += CTAS)
#pragma unroll 1
      for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll 1
        for (int half = 0; half < HALVES; half++) {
          const int row = GATED ? tile * 8 + half * OUTPUTS : tile * TILE_ROWS + half * SLICE_ROWS;
          producer.fetch(weight + static_cast<int64>(row) * IN + chunk * SLICE_COLUMNS, IN);
        }
  }
};

// The sums of a product's warps, in turns, and of squares of x.
struct ProductSums {
  float partial[2][WARPS][MAX_TOKENS][SUM_PITCH];
};

// The surroundings of a product; null where there is no such thing.
struct Around {
  const elem_t *norm = nullptr, *bias = nullptr, *residual = nullptr;
  elem_t* out = nullptr;  // where y goes besides the exchange
  int activation = -1;
  float eps = 0;
};

// The source of x and the target of y: rows of tokens, `pitch` apart. x_memory takes the place of x where it is not null.
struct Ends {
  const uint64* x;
  uint64* y;
  int pitch;
  uint32 x_tag, y_tag;
  const elem_t* x_memory = nullptr;
};

// A warp's part, for CONSUMERS threads that call together. `turn` is that of `sums`. A residual that an earlier stage has
// written must have been out of a product with as many outputs, so that this block has written what it reads.
template <class P, bool NORM>
__device__ __forceinline__ void run_product(RingConsumer& weights, ProductSums& sums, float (&squares)[WARPS][MAX_TOKENS],
                                            int& turn, int tokens, const Ends& ends, const Around& around) {
  // Nobody waits for this block then, and x might be overwritten before it is found.
  if (!P::has(0)) return;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
  const int k0 = warp * 32 + c * 8, tiles = P::tiles();

  constexpr int X_REGISTERS = 8 * (P::STEPS < STEPS_AT_ONCE ? P::STEPS : STEPS_AT_ONCE) + (NORM ? 4 * P::STEPS : 0);
  constexpr int ROOM = (LAYER_REGISTERS - X_REGISTERS) / (4 * SLICE_STEPS), GROUP_SLICES = P::GROUP * P::TILE_SLICES;
  constexpr int EARLY = GROUP_SLICES < ROOM ? GROUP_SLICES : ROOM > 1 ? ROOM : 1;
  // Slices are given back when y is stored, as nobody waits for the ring as urgently as others wait for y; but tile by tile
  // where the ring does not hold those of a group.
  constexpr bool BY_TILE = GROUP_SLICES > RING_SLICES;
  static_assert(P::TILE_SLICES <= RING_SLICES, "the ring must hold a tile");
  const auto give_back = [&](int group, int first_tile, int end_tile) {
    const auto late = [&](int end) { return group == 0 ? max(end * P::TILE_SLICES - EARLY, 0) : end * P::TILE_SLICES; };
    weights.give_back(late(end_tile) - late(first_tile));
  };
  uint4 early[EARLY][SLICE_STEPS];
#pragma unroll
  for (int i = 0; i < EARLY; i++)
    if (P::has(i / P::TILE_SLICES)) weights.take(early[i]);
  weights.give_back(min(EARLY, tiles * P::TILE_SLICES));
  uint4 scale[NORM ? P::STEPS : 1];
  if constexpr (NORM)
#pragma unroll
    for (int s = 0; s < P::STEPS; s++) scale[s] = load16_stream(around.norm + k0 + s * STEP);

  // The output that this thread finishes, of a group of tiles, and what is added to it.
  const int token = threadIdx.x / P::GROUP_OUTPUTS, row = threadIdx.x % P::GROUP_OUTPUTS;
  bool finishes;
  int output;
  float added = 0, offset = 0, up_offset = 0;
  const auto choose = [&](int group) {
    const int tile = group * P::GROUP + row / P::OUT_ROWS;
    finishes = token < tokens && tile < tiles;
    output = (blockIdx.x + tile * CTAS) * P::OUT_ROWS + row % P::OUT_ROWS;
    if (!finishes) return;
    if (around.residual) added = to_float(load_coherent(around.residual + token * P::OUTPUTS + output));
    if (around.bias) {
      offset = to_float(around.bias[output]);
      if (P::GATED) up_offset = to_float(around.bias[P::OUTPUTS + output]);
    }
  };
  choose(0);

  uint4 x[P::STEPS];
  if (ends.x_memory != nullptr) {
#pragma unroll
    for (int s = 0; s < P::STEPS; s++)
      x[s] = r < tokens ? load16_coherent(ends.x_memory + r * P::IN + k0 + s * STEP) : make_uint4(0, 0, 0, 0);
  } else {
    await_steps<STEP / 2, STEPS_AT_ONCE>(x, ends.x + r * ends.pitch + k0 / 2, r < tokens, ends.x_tag);
  }
  if constexpr (NORM) {
    float square[2][4] = {};  // x · xᵀ, whose diagonal is the sum of squares
#pragma unroll
    for (int s = 0; s < P::STEPS; s++) {
      mma_m16n8k16(square[0], x[s].x, 0, x[s].y, 0, x[s].x, x[s].y);
      mma_m16n8k16(square[1], x[s].z, 0, x[s].w, 0, x[s].z, x[s].w);
      x[s] = multiply(x[s], scale[s]);
    }
    if (c == r / 2) squares[warp][r] = r % 2 ? square[0][1] + square[1][1] : square[0][0] + square[1][0];
  }

#pragma unroll 1
  for (int group = 0; group < P::GROUPS; group++, turn ^= 1) {
#pragma unroll
    for (int t = 0; t < P::GROUP; t++) {
      if (!P::has(group * P::GROUP + t)) continue;
      float d[4][4] = {};  // four chains hide the latency of mma
#pragma unroll
      for (int i = 0; i < P::CHUNKS; i++) {
        const int slice = t * P::TILE_SLICES + i * P::HALVES;
        const auto get = [&](uint4(&slice_weights)[SLICE_STEPS], int index) {
          if (index < EARLY && group == 0) {
#pragma unroll
            for (int s = 0; s < SLICE_STEPS; s++) slice_weights[s] = early[index < EARLY ? index : 0][s];
          } else {
            weights.take(slice_weights);
          }
        };
        uint4 low[SLICE_STEPS], high[SLICE_STEPS] = {};
        get(low, slice);
        if constexpr (P::HALVES == 2) get(high, slice + 1);
#pragma unroll
        for (int s = 0; s < SLICE_STEPS; s++) {
          const uint4 v = x[i * SLICE_STEPS + s], a = low[s], b = high[s];
          mma_m16n8k16(d[s % 2 * 2], a.x, b.x, a.y, b.y, v.x, v.y);
          mma_m16n8k16(d[s % 2 * 2 + 1], a.z, b.z, a.w, b.w, v.z, v.w);
        }
      }
#pragma unroll
      for (int i = 0; i < P::TILE_ROWS / 4; i++)
        sums.partial[turn][warp][c * 2 + i % 2][t * P::TILE_ROWS + i / 2 * 8 + r] = d[0][i] + d[1][i] + d[2][i] + d[3][i];
      if constexpr (BY_TILE) give_back(group, t, t + 1);
    }
    named_barrier_sync(1, CONSUMERS);

    float y = 0;
    if (finishes) {
      const int sum_row = row / P::OUT_ROWS * P::TILE_ROWS + row % P::OUT_ROWS;
      float sum = 0, up = 0, factor = 1;
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        sum += sums.partial[turn][w][token][sum_row];
        if (P::GATED) up += sums.partial[turn][w][token][sum_row + 8];
      }
      if constexpr (NORM) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += squares[w][token];
        factor = rsqrtf(total / P::IN + around.eps);
      }
      y = sum * factor + offset;
      if (around.activation >= 0) y = activate(y, around.activation);
      if (P::GATED) y *= up * factor + up_offset;
      y += added;
    }
    const float next = __shfl_down_sync(FULL_MASK, y, 1);
    if (finishes && row % 2 == 0) {
      const uint32 pair = pack2(y, next);
      store_tagged(ends.y + token * ends.pitch + output / 2, pair, ends.y_tag);
      if (around.out) *reinterpret_cast<uint32*>(around.out + token * P::OUTPUTS + output) = pair;
    }
    if constexpr (!BY_TILE) give_back(group, 0, min(P::GROUP, tiles - group * P::GROUP));
    if (group + 1 < P::GROUPS) choose(group + 1);
  }
}
