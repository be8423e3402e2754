// The shared memory of linear_quantised.cu, and the two warps that fill it: a ring of stages of codes with their scales, and x.
#pragma once
#include "hopper.cuh"
#include "quantised.cuh"

#if !defined(WARPS) || !defined(TOKEN_BLOCKS) || !defined(STRIPS) || !defined(GATED)
#error "WARPS, TOKEN_BLOCKS, STRIPS and GATED come from src/backend/cuda/ops/quantised-linear.ts"
#endif
#if !defined(SUB) || !defined(STAGE_GROUPS) || !defined(WARP_BLOCKS)
#error "SUB, STAGE_GROUPS and WARP_BLOCKS come from src/backend/cuda/ops/quantised-linear.ts"
#endif
#if !defined(QUANTISED_MAX_STAGES) || !defined(SUM_PADDING) || !defined(X_PADDING)
#error "QUANTISED_MAX_STAGES, SUM_PADDING and X_PADDING come from src/backend/cuda/ops/quantised-linear.ts"
#endif

constexpr bool IN_STAGES = SCALES != ROW_FLOATS;
constexpr int CONSUMERS = WARPS * WARP;
constexpr int TILE_ROWS = STRIPS * STRIP, OUT_ROWS = GATED ? STRIP : TILE_ROWS;
constexpr int TOKENS = TOKEN_BLOCKS * 8;
constexpr int CHUNK = WARPS * WARP_BLOCKS * BLOCK;
constexpr int K_STEPS = BLOCK / 16, SUBS = BLOCK / SUB, SUB_STEPS = K_STEPS / SUBS;
static_assert(STRIPS == 1 || STRIPS == 2, "a tile is one strip or two");
static_assert(!GATED || STRIPS == 2, "a gated tile is a strip of each half");
static_assert(SUB * SUBS == BLOCK && SUB % 16 == 0, "scales change between steps of 16 columns");

constexpr int CODE_BYTES = WARPS * WARP_BLOCKS * BLOCK_BYTES * STRIP;
constexpr int STAGE_SUPERBLOCKS = STEPPED ? CHUNK / SUPERBLOCK : 0;
// Steps of a row's superblock, whose groups are of SUB columns.
constexpr int STEP_BYTES = SUPERBLOCK / SUB * FACTORS;
constexpr int SCALE_BYTES = STEPPED     ? STAGE_GROUPS * STRIP * FACTORS
                            : GROUPED   ? STAGE_GROUPS * STRIP * 2
                            : IN_STAGES ? ceil_div(STAGE_GROUPS * 4, 16) * 16
                                        : 0;
constexpr int ZERO_BYTES = ZEROS ? ceil_div(STAGE_GROUPS * STRIP, 16) * 16 : 0;
constexpr int UNIT_BYTES = STAGE_SUPERBLOCKS * STRIP * 2 * FACTORS;
constexpr int STAGE_BYTES = STRIPS * (CODE_BYTES + SCALE_BYTES + ZERO_BYTES + UNIT_BYTES);
static_assert(STAGE_BYTES % 16 == 0 && SCALE_BYTES % 16 == 0, "stages are aligned to vectors");
static_assert(!STEPPED || CHUNK % SUPERBLOCK == 0, "stages have whole superblocks");
constexpr int SUM_PITCH = TILE_ROWS + SUM_PADDING;

struct Control {
  uint64 full[QUANTISED_MAX_STAGES], empty[QUANTISED_MAX_STAGES];
  uint64 x_full[2], x_empty[2], gamma_full;
  float squares[TOKENS][WARPS];
  float partial[2][WARPS][TOKENS][SUM_PITCH];
};

// The ring, of a length that the host chose.
struct Ring {
  Control& control;
  unsigned char* stages;
  int count, stage = 0;
  uint32 phase = 0;

  __device__ __forceinline__ unsigned char* bytes() const { return stages + stage * STAGE_BYTES; }
  __device__ __forceinline__ uint32 full() const { return shared_address(&control.full[stage]); }
  __device__ __forceinline__ uint32 empty() const { return shared_address(&control.empty[stage]); }
  __device__ __forceinline__ void advance() {
    if (++stage == count) stage = 0, phase ^= 1;
  }
};

// This CTA's share of the work: tiles of slots 0, 1, ….
struct Work {
  int inputs;

  __device__ __forceinline__ int tile(int slot) const { return blockIdx.x + slot * gridDim.x; }
  // The strip of a tile's rows, `outputs` rows apart with GATED; behind the last one, that one.
  __device__ __forceinline__ int strip(int slot, int part, int outputs) const {
    if (GATED) return tile(slot) + part * (outputs / STRIP);
    return min(tile(slot) * STRIPS + part, outputs / STRIP - 1);
  }
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool BULK = true;
#else
constexpr bool BULK = false;
#endif
constexpr uint32 FULL_ARRIVALS = (BULK ? 1 : 0) + (!BULK || IN_STAGES ? WARP : 0);

struct Source {
  const unsigned char *weight, *scales, *zeros, *units;
  int outputs, group_size, groups, block_rows;
};

__device__ __forceinline__ void fetch_stage(Ring& ring, const Work& work, const Source& from, int slot, int column, int columns) {
  const int lane = threadIdx.x % WARP;
  const int blocks = columns / BLOCK, strip_blocks = work.inputs / BLOCK;
  barrier_wait(ring.empty(), ring.phase ^ 1);
  const uint32 target = shared_address(ring.bytes()), full = ring.full();
  const auto codes_of = [&](int part) {
    const int64 first = static_cast<int64>(work.strip(slot, part, from.outputs)) * strip_blocks + column / BLOCK;
    return from.weight + first * (BLOCK_BYTES * STRIP);
  };
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (lane == 0) barrier_expect(full, STRIPS * blocks * (BLOCK_BYTES * STRIP));
  __syncwarp();
  if (lane < STRIPS) copy_bytes(target + lane * CODE_BYTES, codes_of(lane), blocks * (BLOCK_BYTES * STRIP), full);
#else
  for (int part = 0; part < STRIPS; part++) {
    const unsigned char* codes = codes_of(part);
    for (int i = lane; i < blocks * (BLOCK_BYTES * STRIP / 16); i += WARP)
      cp_async16(target + part * CODE_BYTES + i * 16, codes + i * 16, true);
  }
#endif
  if constexpr (IN_STAGES) {
    const int first = column / from.group_size, count = min(STAGE_GROUPS, from.groups - first);
#pragma unroll
    for (int part = 0; part < STRIPS; part++) {
      const int strip = work.strip(slot, part, from.outputs);
      const uint32 scales = target + STRIPS * CODE_BYTES + part * SCALE_BYTES;
      const uint32 zeros = target + STRIPS * (CODE_BYTES + SCALE_BYTES) + part * ZERO_BYTES;
      if constexpr (GROUPED) {
        const int64 group = static_cast<int64>(strip) * from.groups + first;
        for (int i = lane; i < count; i += WARP) {
          cp_async16(scales + i * 16, from.scales + (group + i) * 16, true);
          if (ZEROS) copy_async8(zeros + i * 8, from.zeros + (group + i) * 8);
        }
      } else if constexpr (STEPPED) {
        const int superblocks = work.inputs / SUPERBLOCK, superblock = column / SUPERBLOCK;
        const int some = min(STAGE_SUPERBLOCKS, superblocks - superblock);
        const int64 begin = (static_cast<int64>(strip) * superblocks + superblock) * STRIP;
        const uint32 units = target + STRIPS * (CODE_BYTES + SCALE_BYTES + ZERO_BYTES) + part * UNIT_BYTES;
        for (int i = lane; i < some * (STRIP * STEP_BYTES / 16); i += WARP)
          cp_async16(scales + i * 16, from.scales + begin * STEP_BYTES + i * 16, true);
        for (int i = lane; i < some * FACTORS; i += WARP)
          cp_async16(units + i * 16, from.units + begin * (2 * FACTORS) + i * 16, true);
      } else {
        const int64 block = static_cast<int64>(strip * STRIP / from.block_rows) * from.groups + first;
        for (int i = lane; i < count; i += WARP) copy_async4(scales + i * 4, from.scales + (block + i) * 4);
      }
    }
  }
  if (!BULK || IN_STAGES) arrive_copied(full);
  ring.advance();
}

// x in shared memory: segments of columns of all tokens, in one buffer or in two that take turns, and gamma.
struct StagedX {
  Control& control;
  unsigned char* rows;
  elem_t* gamma;
  int pitch, buffers, tokens, buffer = 0;
  uint32 phase = 0;

  __device__ __forceinline__ unsigned char* bytes() const { return rows + buffer * tokens * pitch; }
  __device__ __forceinline__ uint32 full() const { return shared_address(&control.x_full[buffer]); }
  __device__ __forceinline__ uint32 empty() const { return shared_address(&control.x_empty[buffer]); }
  __device__ __forceinline__ void advance() {
    if (++buffer == buffers) buffer = 0, phase ^= 1;
  }

  // By the warp that fetches x.
  __device__ __forceinline__ void fetch_gamma(const elem_t* from, int inputs) const {
    const int lane = threadIdx.x % WARP;
    const uint32 target = shared_address(gamma), done = shared_address(&control.gamma_full);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (lane > 0) return;
    barrier_expect(done, inputs * sizeof(elem_t));
    copy_bytes(target, from, inputs * sizeof(elem_t), done);
#else
    for (int i = lane; i < inputs / VEC; i += WARP) cp_async16(target + i * 16, from + i * VEC, true);
    arrive_copied(done);
#endif
  }
  __device__ __forceinline__ void fetch(const elem_t* x, int inputs, int first, int columns) {
    const int lane = threadIdx.x % WARP;
    barrier_wait(empty(), phase ^ 1);
    const uint32 target = shared_address(bytes());
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (lane == 0) barrier_expect(full(), tokens * columns * sizeof(elem_t));
    __syncwarp();
    for (int token = lane; token < tokens; token += WARP)
      copy_bytes(target + token * pitch, x + static_cast<int64>(token) * inputs + first, columns * sizeof(elem_t), full());
#else
    for (int token = 0; token < tokens; token++)
      for (int i = lane; i < columns / VEC; i += WARP)
        cp_async16(target + token * pitch + i * 16, x + static_cast<int64>(token) * inputs + first + i * VEC, true);
    arrive_copied(full());
#endif
    advance();
  }

  // By the warps that multiply: x of this segment times gamma, in place; each does the columns of its own blocks, which no other reads. The
  // squares of x are added to those of the segments before.
  __device__ __forceinline__ void normalise(int first, int columns, bool first_pass) const {
    constexpr int PIECES = BLOCK / VEC;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int blocks = (columns / BLOCK - warp + WARPS - 1) / WARPS;
    for (int token = 0; token < tokens; token++) {
      unsigned char* row = bytes() + token * pitch;
      float sum = 0;
#pragma unroll 4
      for (int piece = lane; piece < blocks * PIECES; piece += WARP) {
        const int i = (piece / PIECES * WARPS + warp) * PIECES + piece % PIECES;
        const uint4 value = load16(row + i * 16), scale = load16(gamma + first + i * VEC);
        float v[VEC];
        unpack(value, v);
#pragma unroll
        for (int j = 0; j < VEC; j++) sum += v[j] * v[j];
        store16(row + i * 16, make_uint4(fma2(value.x, scale.x, MINUS_ZEROS), fma2(value.y, scale.y, MINUS_ZEROS),
                                         fma2(value.z, scale.z, MINUS_ZEROS), fma2(value.w, scale.w, MINUS_ZEROS)));
      }
      sum = warp_sum(sum);
      float& squares = control.squares[token][warp];
      if (lane == 0 && first_pass) squares = (first == 0 ? 0 : squares) + sum;
    }
    __syncwarp();
  }
  __device__ __forceinline__ float factor(int token, int inputs, float eps) const {
    float total = 0;
    for (int i = 0; i < WARPS; i++) total += control.squares[token][i];
    return rsqrtf(total / inputs + eps);
  }
};
