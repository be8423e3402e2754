// out[T, N] = x[T, K] · W[N, K]ᵀ for few tokens, W quantised, with a norm before the product and bias, activation or residual sum
// after it.
//
//   x       elem_t [T, K]            gamma     elem_t [K], the norm's weight, or null
//   weight  codes in the order of quantised.cuh
//   scales  by SCALES: float [N] a row; float [⌈N / block_rows⌉, scale_columns] a block of 128 columns; 16-bit [N / 8][K / g][8];
//           or steps [N / 8][K / g][8][1 or 2], whose units are float16 [N / 8][K / 256][8][1 or 2]
//   zeros   uint8 [N / 8][K / g][8], with ZEROS
//   bias    elem_t [N] or null       residual  elem_t [T, outputs] or null; may be out
//   out     elem_t or float [T, outputs]
// outputs is N, or N / 2 with GATED: act(first half) · second half.
//
// Parallelisation: a CTA takes tiles of STRIPS · 8 weight rows, one every gridDim.x. A warp streams codes and scales through a ring of
// stages of WARPS · WARP_BLOCKS blocks of columns; each of WARPS warps takes its blocks of every stage, and they add up through
// shared memory in warp order, so that results repeat bit for bit and do not depend on the other tokens: with few tokens for several
// tiles together, as warps wait for each other there. The weights are the 16-wide side of mma.m16n8k16, tokens the 8-wide side.
// Another warp fetches x to shared memory, where it is too long in segments of columns that two buffers take in turns, each for KEPT
// tiles at once; with a norm, each warp that multiplies scales the columns that it reads.
//
// Why this version: reading the weights is all the cost, and what stands between a stage and the next. A strip's part of a stage is
// contiguous, one bulk copy; before Hopper it is copied by the warp's lanes. Codes become floats between shared memory and mma by a
// few logical instructions, and a group's scale is applied to the group's sums, in float32, so that weights are exact; a minimum to the
// sums of the group's x, which mma makes of ones. The ring
// is filled before the wait for the kernels before, and takes what shared memory there is: where two CTAs fit a multiprocessor some get
// two and are the last to end by far.
//
// A first version was measured on an H100, bench/NOTES.md has what it gave and what this one does otherwise.
#include "activation.cuh"
#include "quantised_ring.cuh"

#if !defined(KEPT) || !defined(OUT_FLOAT)
#error "KEPT and OUT_FLOAT come from src/backend/cuda/ops/quantised-linear.ts"
#endif

#if OUT_FLOAT
using out_t = float;
__device__ __forceinline__ void store_out(out_t* p, float y) { *p = y; }
#else
using out_t = elem_t;
__device__ __forceinline__ void store_out(out_t* p, float y) { *p = from_float(y); }
#endif

// What a warp has of a stage, and what makes weights of it.
struct Taken {
  uint32 words[WARP_BLOCKS][2][4];
  uint32 offset[WARP_BLOCKS][SUBS][2];
  float factor[STEPPED ? 1 : WARP_BLOCKS][SUBS][2];
  // Of superblocks as they are stored, as factors would take more registers.
  Steps<BLOCK, STEPPED ? SUB : BLOCK / 4> steps[WARP_BLOCKS][2];
  uint32 units[WARP_BLOCKS][2];

  __device__ __forceinline__ GroupFactors factors(int b, int sub, int part) const {
    if constexpr (STEPPED) return steps[b][part].factors(sub, units[b][part]);
    else return {factor[b][sub][part], 0};
  }
};

__device__ __forceinline__ void take(Taken& taken, const unsigned char* stage, int group_shift) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4;
  const unsigned char* scales = stage + STRIPS * CODE_BYTES;
  const unsigned char* zeros = scales + STRIPS * SCALE_BYTES;
  [[maybe_unused]] const unsigned char* units = zeros + STRIPS * ZERO_BYTES;
#pragma unroll
  for (int b = 0; b < WARP_BLOCKS; b++) {
    const int block = b * WARPS + warp;
#pragma unroll
    for (int part = 0; part < STRIPS; part++) {
      const uint4 codes = load16(stage + part * CODE_BYTES + block * (BLOCK_BYTES * STRIP) + lane * 16);
      taken.words[b][part][0] = codes.x, taken.words[b][part][1] = codes.y;
      taken.words[b][part][2] = codes.z, taken.words[b][part][3] = codes.w;
      if constexpr (STEPPED) {
        static_assert(SUPERBLOCK % BLOCK == 0, "a block is of one superblock");
        const int row = block * BLOCK / SUPERBLOCK * STRIP + r, within = block * BLOCK % SUPERBLOCK / SUB * FACTORS;
        taken.steps[b][part].load(scales + part * SCALE_BYTES + row * STEP_BYTES + within);
        taken.units[b][part] = load_units(units + part * UNIT_BYTES, row);
      }
#pragma unroll
      for (int sub = 0; sub < SUBS; sub++) {
        [[maybe_unused]] const int group = min((block * BLOCK + sub * SUB) >> group_shift, STAGE_GROUPS - 1);
        taken.offset[b][sub][part] = offset_of(ZEROS ? zeros[part * ZERO_BYTES + group * STRIP + r] : USUAL_ZERO);
        if constexpr (GROUPED)
          taken.factor[b][sub][part] =
              group_scale(reinterpret_cast<const uint16*>(scales + part * SCALE_BYTES)[group * STRIP + r]);
        else if constexpr (IN_STAGES && !STEPPED)
          taken.factor[b][sub][part] = reinterpret_cast<const float*>(scales + part * SCALE_BYTES)[group];
      }
    }
  }
}

// Zero, but only once all that was taken has arrived: the copy engine may write to the stage then. A fence for that purpose waits for
// much more. `none` is zero.
__device__ __forceinline__ uint32 arrival(const Taken& taken, uint32 none) {
  uint32 seen = 0;
#pragma unroll
  for (int b = 0; b < WARP_BLOCKS; b++)
#pragma unroll
    for (int part = 0; part < STRIPS; part++) {
#pragma unroll
      for (int i = 0; i < 4; i++) seen |= taken.words[b][part][i];
      if (STEPPED) seen |= taken.steps[b][part].seen() | taken.units[b][part];
#pragma unroll
      for (int sub = 0; sub < SUBS; sub++) {
        if (ZEROS) seen |= taken.offset[b][sub][part];
        if (IN_STAGES && !STEPPED) seen |= __float_as_uint(taken.factor[b][sub][part]);
      }
    }
  return seen & none;
}

// Adds a block of a stage, of which x has its first column at `x`, to the tile's sums.
__device__ __forceinline__ void multiply_block(float (&total)[TOKEN_BLOCKS][4], const Taken& taken, int b,
                                               const uint32 (&x)[TOKEN_BLOCKS], int offset) {
  constexpr int CHAINS = TOKEN_BLOCKS == 1 && SUB_STEPS > 1 ? 2 : 1;
  uint32 inputs[TOKEN_BLOCKS][4];
  uint32 pairs[2][WORD_PAIRS];
#pragma unroll
  for (int sub = 0; sub < SUBS; sub++) {
    float d[TOKEN_BLOCKS][CHAINS][4] = {};
    [[maybe_unused]] float sums_of_x[TOKEN_BLOCKS][4] = {};
#pragma unroll
    for (int i = 0; i < SUB_STEPS; i++) {
      const int step = sub * SUB_STEPS + i, word = step * 2 / WORD_PAIRS, pair = step * 2 % WORD_PAIRS;
      if (pair == 0 || i == 0)
#pragma unroll
        for (int part = 0; part < STRIPS; part++)
          dequantise(pairs[part], taken.words[b][part][word], taken.offset[b][sub][part]);
      if (step % 2 == 0)
#pragma unroll
        for (int block = 0; block < TOKEN_BLOCKS; block++) ldmatrix_x4(inputs[block], x[block] + offset + step * 32);
      const uint32 a1 = STRIPS == 2 ? pairs[1][pair] : 0, a3 = STRIPS == 2 ? pairs[1][pair + 1] : 0;
#pragma unroll
      for (int block = 0; block < TOKEN_BLOCKS; block++)
        mma_m16n8k16(d[block][i % CHAINS], pairs[0][pair], a1, pairs[0][pair + 1], a3, inputs[block][step % 2 * 2],
                     inputs[block][step % 2 * 2 + 1]);
      if constexpr (MINIMA)
#pragma unroll
        for (int block = 0; block < TOKEN_BLOCKS; block++)
          mma_m16n8k16(sums_of_x[block], ONES, ONES, ONES, ONES, inputs[block][step % 2 * 2], inputs[block][step % 2 * 2 + 1]);
    }
    [[maybe_unused]] const GroupFactors factors[2] = {taken.factors(b, sub, 0), taken.factors(b, sub, STRIPS - 1)};
#pragma unroll
    for (int block = 0; block < TOKEN_BLOCKS; block++)
#pragma unroll
      for (int j = 0; j < STRIPS * 2; j++) {
        float sum = d[block][0][j];
        if (CHAINS == 2) sum += d[block][CHAINS - 1][j];
        total[block][j] = IN_STAGES ? fmaf(sum, factors[j / 2].scale, total[block][j]) : total[block][j] + sum;
        if (MINIMA) total[block][j] = fmaf(-factors[j / 2].minimum, sums_of_x[block][j % 2], total[block][j]);
      }
  }
}

// An output that a thread finishes, and what is loaded for it while its sum is computed.
struct Output {
  out_t* out;
  const elem_t *bias, *residual;
  const float* row_scales;
  int outputs, activation;
  float added, scale, up_scale;

  __device__ __forceinline__ int64 index(int token, int output) const { return static_cast<int64>(token) * outputs + output; }
  __device__ __forceinline__ void begin(int token, int output) {
    added = residual ? to_float(load_coherent(residual + index(token, output))) : 0;
    scale = up_scale = FLOAT8_FACTOR;
    if constexpr (!IN_STAGES) {
      scale *= row_scales[output];
      if (GATED) up_scale *= row_scales[outputs + output];
    }
  }
  __device__ __forceinline__ void finish(int token, int output, float y, float up) {
    y *= scale;
    if (bias) y += to_float(bias[output]);
    if (activation >= 0) y = activate(y, activation);
    if constexpr (GATED) {
      up *= up_scale;
      if (bias) up += to_float(bias[outputs + output]);
      y *= up;
    }
    store_out(out + index(token, output), y + added);
  }
};

// Grid: at most one CTA a tile, all resident; CONSUMERS + 2 · WARP threads. `segment` columns of x are in shared memory at a time, all
// or a multiple of CHUNK, in `x_buffers` buffers. `groups` is the number of scales in a row, `group_shift` the logarithm of their
// columns, or 31. `activation` is its code, or −1. The next kernel may start when all weights have been requested.
extern "C" __global__ void __launch_bounds__(CONSUMERS + 2 * WARP, 1)
    linear_quantised(out_t* out, const elem_t* x, const unsigned char* __restrict__ weight,
                     const unsigned char* __restrict__ scales, const unsigned char* __restrict__ zeros,
                     const unsigned char* __restrict__ units, const elem_t* __restrict__ gamma, const elem_t* __restrict__ bias, const elem_t* residual, int tokens,
                     int inputs, int outputs, int tiles, int segment, int x_buffers, int stages, int group_size, int group_shift,
                     int groups, int block_rows, int activation, float eps) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic);
  Ring ring = {control, dynamic + ceil_div(sizeof(Control), 128) * 128, stages};
  const int pitch = segment * 2 + X_PADDING;
  unsigned char* rest = ring.stages + stages * STAGE_BYTES;
  StagedX staged = {control, rest, reinterpret_cast<elem_t*>(rest + x_buffers * tokens * pitch), pitch, x_buffers, tokens};
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
  if (threadIdx.x == CONSUMERS) {
    for (int i = 0; i < stages; i++) {
      barrier_init(shared_address(&control.full[i]), FULL_ARRIVALS);
      barrier_init(shared_address(&control.empty[i]), WARPS);
    }
    for (int i = 0; i < 2; i++) {
      barrier_init(shared_address(&control.x_full[i]), BULK ? 1 : WARP);
      barrier_init(shared_address(&control.x_empty[i]), WARPS);
    }
    barrier_init(shared_address(&control.gamma_full), BULK ? 1 : WARP);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    barrier_init_fence();
#endif
  }
  __syncthreads();

  const Work work = {inputs};
  const int slots = ceil_div(tiles - static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x));
  const bool whole = segment >= inputs;
  if (warp == WARPS) {
    const Source from = {weight, scales, zeros, units, outputs, group_size, groups, block_rows};
    for (int first_slot = 0; first_slot < slots; first_slot += KEPT)
      for (int start = 0; start < inputs; start += segment)
        for (int slot = first_slot; slot < min(first_slot + KEPT, slots); slot++)
#pragma unroll 1
          for (int column = start; column < min(start + segment, inputs); column += CHUNK)
            fetch_stage(ring, work, from, slot, column, min(CHUNK, min(start + segment, inputs) - column));
    GRID_DEPENDENCY_LAUNCH();
    return;
  }
  if (warp == WARPS + 1) {
    if (gamma) staged.fetch_gamma(gamma, inputs);
    GRID_DEPENDENCY_WAIT();
    for (int first_slot = 0; first_slot < (whole ? 1 : slots); first_slot += KEPT)
      for (int start = 0; start < inputs; start += segment) staged.fetch(x, inputs, start, min(segment, inputs - start));
    return;
  }

  // Outputs that a thread finishes: of its row of a tile, for one token of one of the tiles whose sums are kept together.
  constexpr int TURNS = ceil_div(OUT_ROWS * TOKENS, CONSUMERS);
  const int together = KEPT > 1 ? 1 : TOKENS / tokens;
  Output results[TURNS];
#pragma unroll
  for (int i = 0; i < TURNS; i++)
    results[i] = {out, bias, residual, reinterpret_cast<const float*>(scales), outputs, activation};
  const int row = threadIdx.x % OUT_ROWS;
  struct Place {
    int line, tile, token, output;
  };
  const auto place_of = [&](int turn, int first_slot) {
    const int line = threadIdx.x / OUT_ROWS + turn * (CONSUMERS / OUT_ROWS), tile = line / tokens;
    return Place{line, tile, line - tile * tokens, work.tile(first_slot + tile) * OUT_ROWS + row};
  };
  const uint32 none = static_cast<uint32>(stages) >> 16;
  // Lanes give ldmatrix the rows of tokens, those behind the last one that one.
  uint32 rows[TOKEN_BLOCKS];
#pragma unroll
  for (int block = 0; block < TOKEN_BLOCKS; block++)
    rows[block] = min(block * 8 + lane % 8, tokens - 1) * pitch + lane / 8 * 16 + warp * BLOCK * 2;

  GRID_DEPENDENCY_WAIT();
  int buffer = 0;
  const auto begin = [&](int first_slot, int count) {
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const Place at = place_of(i, first_slot);
      if (at.tile < count && at.output < outputs) results[i].begin(at.token, at.output);
    }
  };
  const auto keep = [&](const float(&total)[TOKEN_BLOCKS][4], int tile) {
#pragma unroll
    for (int block = 0; block < TOKEN_BLOCKS; block++)
#pragma unroll
      for (int i = 0; i < STRIPS * 2; i++) {
        const int token = block * 8 + c * 2 + i % 2;
        if (token < tokens) control.partial[buffer][warp][tile * tokens + token][i / 2 * 8 + r] = total[block][i];
      }
  };
  const auto finish = [&](int first_slot, int count) {
    named_barrier_sync(1, CONSUMERS);
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
      const Place at = place_of(i, first_slot);
      if (at.tile >= count || at.output >= outputs) continue;
      float sum = 0, up = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        sum += control.partial[buffer][w][at.line][row];
        if (GATED) up += control.partial[buffer][w][at.line][row + STRIP];
      }
      const float factor = gamma ? staged.factor(at.token, inputs, eps) : 1;
      results[i].finish(at.token, at.output, sum * factor, up * factor);
    }
    buffer ^= 1;
  };
  // Adds the products of a slot's stages of some columns to its sums.
  const auto multiply = [&](float(&total)[TOKEN_BLOCKS][4], int columns) {
    uint32 mine[TOKEN_BLOCKS];
#pragma unroll
    for (int block = 0; block < TOKEN_BLOCKS; block++) mine[block] = shared_address(staged.bytes()) + rows[block];
#pragma unroll 1
    for (int column = 0; column < columns; column += CHUNK) {
      barrier_wait(ring.full(), ring.phase);
      Taken taken;
      take(taken, ring.bytes(), group_shift);
      const uint32 empty = ring.empty() + arrival(taken, none);
      __syncwarp();
      if (lane == 0) barrier_arrive(empty);
      ring.advance();
      const auto multiply_own = [&](int b) {
        multiply_block(total, taken, b, mine, (column + b * WARPS * BLOCK) * 2);
      };
      if (column + CHUNK <= columns) {
#pragma unroll
        for (int b = 0; b < WARP_BLOCKS; b++) multiply_own(b);
      } else {
#pragma unroll
        for (int b = 0; b < WARP_BLOCKS; b++)
          if (column + (b * WARPS + warp) * BLOCK < columns) multiply_own(b);
      }
    }
  };
  const auto take_x = [&](int start, int columns, bool first_pass) {
    barrier_wait(staged.full(), staged.phase);
    if (!gamma) return;
    if (first_pass && start == 0) barrier_wait(shared_address(&control.gamma_full), 0);
    staged.normalise(start, columns, first_pass);
  };
  const auto give_back_x = [&] {
    if constexpr (BULK) async_proxy_fence();
    __syncwarp();
    if (lane == 0) barrier_arrive(staged.empty());
    staged.advance();
  };
  if constexpr (KEPT == 1) {
    for (int first_slot = 0; first_slot < slots; first_slot += together) {
      const int count = min(together, slots - first_slot);
      begin(first_slot, count);
#pragma unroll 1
      for (int tile = 0; tile < count; tile++) {
        const bool first_pass = first_slot == 0 && tile == 0;
        float total[TOKEN_BLOCKS][4] = {};
        for (int start = 0; start < inputs; start += segment) {
          const int columns = min(segment, inputs - start);
          if (first_pass || !whole) take_x(start, columns, first_pass);
          multiply(total, columns);
          if (!whole) give_back_x();
        }
        keep(total, tile);
      }
      finish(first_slot, count);
    }
  } else {
    for (int first_slot = 0; first_slot < slots; first_slot += KEPT) {
      float total[KEPT][TOKEN_BLOCKS][4] = {};
      for (int start = 0; start < inputs; start += segment) {
        const int columns = min(segment, inputs - start);
        take_x(start, columns, first_slot == 0);
#pragma unroll
        for (int kept = 0; kept < KEPT; kept++)
          if (first_slot + kept < slots) multiply(total[kept], columns);
        give_back_x();
      }
#pragma unroll
      for (int kept = 0; kept < KEPT; kept++) {
        if (first_slot + kept >= slots) break;
        begin(first_slot + kept, 1);
        keep(total[kept], 0);
        finish(first_slot + kept, 1);
      }
    }
  }
}
