// out[T, N] = x[T, K] · W[N, K]ᵀ on Hopper for a few tokens, W in integers with a scale a group, with a norm before the product and
// bias, activation or residual sum after it.
//
//   x       elem_t [T, K]            gamma     elem_t [K], the norm's weight, or null
//   weight  codes in the order of quantised.cuh
//   scales  16-bit [N / 8][K / g][8]
//   zeros   uint8 [N / 8][K / g][8], with ZEROS
//   bias    elem_t [N] or null       residual  elem_t [T, outputs] or null; may be out
//   out     elem_t or float [T, outputs]
// outputs is N, or N / 2 with GATED: act(first half) · second half.
//
// Parallelisation: SPLITS CTAs are a team. They have a part of the columns each, and the same range of tiles of 16 weight rows. A cluster
// is TEAMS teams, whose CTAs of the same columns fetch x for each other, every one some tokens. Of the tiles a warp takes every
// (WARPS / column_parts)-th, of its CTA's columns one of column_parts parts. It streams codes and scales through a ring of its own, so
// that it waits for no other warp, and sums up a tile in registers. The sums are sent to the CTA that has the tile's outputs, where
// they count at a barrier and are added in the order of their columns: results repeat bit for bit and do not depend on the other
// tokens. The weights are the 16-wide side of mma.m16n8k16, tokens the 8-wide side.
//
// Why this version: with some tokens x is as long as the codes of a CTA's rows, and sums of warps that share a tile cost more than
// the tile. A part of the columns for each CTA makes x as much shorter, and rows of its own for each warp leave nothing to add up
// between warps, or little. Codes become floats between shared memory and mma by a few logical instructions, and a group's scale is
// applied to the group's sums, in float32, so that weights are exact. From 9 tokens on these instructions and mma, which hinder each
// other, take about as long as reading the codes; bench/NOTES.md has what they take. Nothing but a stage of weights is requested before
// x has arrived, as x would queue behind it.
//
// H100, a layer's four products of Qwen3-8B with their norms: 44.5 µs for 2 tokens, 46.8 for 8, 50.2 for 16; one token 43.1
// (linear_quantised.cu).
#include "activation.cuh"
#include "cluster.cuh"
#include "quantised.cuh"

#if !defined(WARPS) || !defined(SPLITS) || !defined(TEAMS) || !defined(TOKEN_BLOCKS) || !defined(GATED) || !defined(OUT_FLOAT)
#error "WARPS, SPLITS, TEAMS, TOKEN_BLOCKS, GATED and OUT_FLOAT come from src/backend/cuda/ops/quantised-split.ts"
#endif
#if !defined(SUB) || !defined(STAGE_BLOCKS) || !defined(STAGES) || !defined(X_PADDING)
#error "SUB, STAGE_BLOCKS, STAGES and X_PADDING come from src/backend/cuda/ops/quantised-split.ts"
#endif

constexpr int THREADS = WARPS * WARP, TOKENS = TOKEN_BLOCKS * 8;
constexpr int STRIPS = 2, TILE_ROWS = STRIPS * STRIP, OUT_ROWS = GATED ? STRIP : TILE_ROWS;
constexpr int K_STEPS = BLOCK / 16, SUBS = BLOCK / SUB, SUB_STEPS = K_STEPS / SUBS;
static_assert(GROUPED, "scales are those of groups");
static_assert(SUB * SUBS == BLOCK && SUB % 16 == 0, "scales change between steps of 16 columns");

// Stages that are requested before x: what comes behind them in memory's queues comes late.
constexpr int EARLY_STAGES = 1;
static_assert(STAGES > EARLY_STAGES + 1, "a stage is on its way while one is in use");

// A stage: codes of the tile's two strips, then their scales, then their zero points.
constexpr int STRIP_BLOCK = BLOCK_BYTES * STRIP, CODE_BYTES = STAGE_BLOCKS * STRIP_BLOCK, STAGE_SCALES = STAGE_BLOCKS * SUBS;
constexpr int SCALES_AT = STRIPS * CODE_BYTES, SCALE_BYTES = STRIP * 2;
constexpr int ZEROS_AT = SCALES_AT + STRIPS * STAGE_SCALES * SCALE_BYTES;
constexpr int STAGE_BYTES = ZEROS_AT + (ZEROS ? STRIPS * STAGE_SCALES * STRIP : 0);
static_assert(STAGE_BYTES % 16 == 0, "stages are aligned to vectors");
static_assert(STRIPS * STAGE_SCALES <= WARP, "a lane copies a scale of a stage");

#if OUT_FLOAT
using out_t = float;
#else
using out_t = elem_t;
#endif

struct Control {
  uint64 x_full, sums_full;
  // Of each token, summed over the columns of each of the team's CTAs.
  float squares[SPLITS][TOKENS];
};

// What a warp reads of the weight: of tiles up to `end_tile`, one every `step`, blocks [first_block, end_block).
struct Share {
  const unsigned char *weight, *scales, *zeros;
  int end_tile, step, first_block, end_block, blocks, strips, group_shift, groups;

  // The strip of a tile's rows: with GATED one of each half; behind the last one, that one.
  __device__ __forceinline__ int strip(int tile, int part) const {
    return GATED ? tile + part * (strips / 2) : min(tile * STRIPS + part, strips - 1);
  }
};

// Where in its share a warp fetches.
struct Cursor {
  int tile, block;
  const unsigned char* codes[STRIPS];

  __device__ __forceinline__ void find(const Share& from) {
#pragma unroll
    for (int part = 0; part < STRIPS; part++)
      codes[part] = from.weight + (static_cast<int64>(from.strip(tile, part)) * from.blocks + block) * STRIP_BLOCK +
                    threadIdx.x % WARP * 16;
  }
  // Requests the next stage, in a group of copies of its own; behind the last one, nothing.
  __device__ __forceinline__ void fetch(uint32 stage, const Share& from) {
    const int lane = threadIdx.x % WARP;
    if (tile < from.end_tile) {
      const int count = from.end_block - block;
#pragma unroll
      for (int part = 0; part < STRIPS; part++)
#pragma unroll
        for (int b = 0; b < STAGE_BLOCKS; b++)
          if (b < count) cp_async16(stage + part * CODE_BYTES + b * STRIP_BLOCK + lane * 16, codes[part] + b * STRIP_BLOCK, true);
      const int scale = lane % STAGE_SCALES;
      if (lane < STRIPS * STAGE_SCALES && scale < count * SUBS) {
        const int group = (block * BLOCK + scale * SUB) >> from.group_shift;
        const int64 index = static_cast<int64>(from.strip(tile, lane / STAGE_SCALES)) * from.groups + group;
        cp_async16(stage + SCALES_AT + lane * SCALE_BYTES, from.scales + index * SCALE_BYTES, true);
        if (ZEROS) copy_async8(stage + ZEROS_AT + lane * STRIP, from.zeros + index * STRIP);
      }
      block += STAGE_BLOCKS;
      if (block < from.end_block) {
#pragma unroll
        for (int part = 0; part < STRIPS; part++) codes[part] += CODE_BYTES;
      } else {
        block = from.first_block, tile += from.step;
        find(from);
      }
    }
    cp_async_commit();
  }
};

// Adds block b of a stage, of which x has its first column at `x` and `x_offset`, to the tile's sums.
__device__ __forceinline__ void multiply_block(float (&total)[TOKEN_BLOCKS][4], const unsigned char* stage, int b,
                                               const uint32 (&x)[TOKEN_BLOCKS], int x_offset) {
  const int lane = threadIdx.x % WARP, r = lane / 4;
  uint32 words[STRIPS][4];
#pragma unroll
  for (int part = 0; part < STRIPS; part++) {
    const uint4 codes = load16(stage + part * CODE_BYTES + b * STRIP_BLOCK + lane * 16);
    words[part][0] = codes.x, words[part][1] = codes.y, words[part][2] = codes.z, words[part][3] = codes.w;
  }
  uint32 inputs[TOKEN_BLOCKS][4];
  uint32 pairs[STRIPS][WORD_PAIRS];
#pragma unroll
  for (int sub = 0; sub < SUBS; sub++) {
    float factor[STRIPS];
    uint32 offset[STRIPS];
#pragma unroll
    for (int part = 0; part < STRIPS; part++) {
      const int index = (part * STAGE_SCALES + b * SUBS + sub) * STRIP + r;
      factor[part] = group_scale(reinterpret_cast<const uint16*>(stage + SCALES_AT)[index]);
      offset[part] = offset_of(ZEROS ? (stage + ZEROS_AT)[index] : MIDDLE);
      // In a register: with a constant of its own the instruction takes twice as long.
      if (!ZEROS) asm volatile("" : "+r"(offset[part]));
    }
    float d[TOKEN_BLOCKS][4] = {};
#pragma unroll
    for (int i = 0; i < SUB_STEPS; i++) {
      const int step = sub * SUB_STEPS + i, word = step * 2 / WORD_PAIRS, pair = step * 2 % WORD_PAIRS;
      if (pair == 0 || i == 0)
#pragma unroll
        for (int part = 0; part < STRIPS; part++) dequantise(pairs[part], words[part][word], offset[part]);
      if (step % 2 == 0)
#pragma unroll
        for (int block = 0; block < TOKEN_BLOCKS; block++) ldmatrix_x4(inputs[block], x[block] + x_offset + step * 32);
#pragma unroll
      for (int block = 0; block < TOKEN_BLOCKS; block++)
        mma_m16n8k16(d[block], pairs[0][pair], pairs[1][pair], pairs[0][pair + 1], pairs[1][pair + 1],
                     inputs[block][step % 2 * 2], inputs[block][step % 2 * 2 + 1]);
    }
    // Where groups have a minimum, too, its product by the group's sum of x is to be taken off here.
#pragma unroll
    for (int block = 0; block < TOKEN_BLOCKS; block++)
#pragma unroll
      for (int j = 0; j < 4; j++) total[block][j] = fmaf(d[block][j], factor[j / 2], total[block][j]);
  }
}

// Tokens whose vectors a warp has in registers at once for the norm.
constexpr int NORM_TOKENS = 6;

// Multiplies x, [tokens, vectors] in shared memory, by the norm's weight, and leaves in `squares` what each chunk of x's columns, WARP
// vectors, adds to a token's sum of squares. `parts` warps have different chunks, the other warps other tokens.
__device__ __forceinline__ void scale_inputs(unsigned char* x, int pitch, const unsigned char* gamma, float (*squares)[TOKENS],
                                             int tokens, int vectors, int parts) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, first = warp / parts, step = WARPS / parts;
  for (int chunk = warp - first * parts; chunk * WARP < vectors; chunk += parts) {
    const int column = chunk * WARP + lane;
    const bool inside = column < vectors;
    const uint4 scale = inside ? load16(gamma + column * 16) : make_uint4(0, 0, 0, 0);
    for (int start = first; start < tokens; start += step * NORM_TOKENS) {
      unsigned char* at = x + start * pitch + column * 16;
      uint4 value[NORM_TOKENS];
      float sum[NORM_TOKENS] = {};
#pragma unroll
      for (int i = 0; i < NORM_TOKENS; i++)
        if (inside && start + i * step < tokens) value[i] = load16(at + i * step * pitch);
#pragma unroll
      for (int i = 0; i < NORM_TOKENS; i++)
        if (inside && start + i * step < tokens) {
          float v[VEC];
          unpack(value[i], v);
#pragma unroll
          for (int j = 0; j < VEC; j++) sum[i] += v[j] * v[j];
          store16(at + i * step * pitch, make_uint4(fma2(value[i].x, scale.x, MINUS_ZEROS), fma2(value[i].y, scale.y, MINUS_ZEROS),
                                                    fma2(value[i].z, scale.z, MINUS_ZEROS), fma2(value[i].w, scale.w, MINUS_ZEROS)));
        }
#pragma unroll
      for (int i = 0; i < NORM_TOKENS; i++) sum[i] = warp_sum(sum[i]);
      if (lane == 0)
#pragma unroll
        for (int i = 0; i < NORM_TOKENS; i++)
          if (start + i * step < tokens) squares[chunk][start + i * step] = sum[i];
    }
  }
}

// Outputs of 8 tokens that a warp finishes: of a tile's rows r and r + 8 (with GATED row r, and what it gates), tokens 2c and 2c + 1.
struct Outputs {
  out_t* out;
  const elem_t *bias, *residual;
  int tokens, outputs, activation, token0, row0;

  __device__ __forceinline__ int64 index(int token, int row) const { return static_cast<int64>(token) * outputs + row; }

  // The residual as memory has it: token r, rows 2c and 2c + 1 of 8.
  __device__ __forceinline__ void load_residual(uint32 (&added)[2]) const {
    const int lane = threadIdx.x % WARP, token = token0 + lane / 4;
    if (!residual || token >= tokens) return;
#pragma unroll
    for (int half = 0; half < OUT_ROWS / 8; half++) {
      const int row = row0 + half * 8;
      if (row < outputs) added[half] = load_coherent(reinterpret_cast<const uint32*>(residual + index(token, row + lane % 4 * 2)));
    }
  }
  // `factors` are the norm's of the two tokens.
  __device__ __forceinline__ void finish(float4 sum, const float (&factors)[2], const uint32 (&added)[2]) const {
    const int lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
    const float sums[2][2] = {{sum.x, sum.y}, {sum.z, sum.w}};
#pragma unroll
    for (int half = 0; half < OUT_ROWS / 8; half++) {
      const int row = row0 + half * 8 + r;
      // Strips are whole.
      if (row0 + half * 8 >= outputs) break;
      const float offset = bias ? to_float(bias[row]) : 0, up_offset = GATED && bias ? to_float(bias[outputs + row]) : 0;
      float y[2], more[2];
      unpack2(transpose_8x8(added[half]), more[0], more[1]);
#pragma unroll
      for (int j = 0; j < 2; j++) {
        y[j] = sums[half][j] * factors[j] + offset;
        if (activation >= 0) y[j] = activate(y[j], activation);
        if (GATED) y[j] *= sums[1][j] * factors[j] + up_offset;
        y[j] += more[j];
      }
#if OUT_FLOAT
#pragma unroll
      for (int j = 0; j < 2; j++)
        if (token0 + 2 * c + j < tokens) out[index(token0 + 2 * c + j, row)] = y[j];
#else
      const uint32 pair = transpose_8x8(pack2(y[0], y[1]));
      if (token0 + r < tokens) *reinterpret_cast<uint32*>(out + index(token0 + r, row - r + 2 * c)) = pair;
#endif
    }
  }
};

// Grid (teams, 1, SPLITS) of THREADS threads. `tiles` is the number of tiles of TILE_ROWS rows, `slots` the most of them whose outputs
// a CTA has. `columns` is the most that a CTA has of x, `norm_parts` of how many chunks of them warps multiply by the norm's weight at
// once. `groups` is the number of scales in a row, `group_shift` the logarithm of their columns, or 31. `activation` is its code, or -1.
extern "C" __global__ void __cluster_dims__(TEAMS, 1, SPLITS) __launch_bounds__(THREADS, 1)
    linear_quantised_split(out_t* out, const elem_t* x, const unsigned char* __restrict__ weight,
                           const unsigned char* __restrict__ scales, const unsigned char* __restrict__ zeros,
                           const elem_t* __restrict__ gamma, const elem_t* __restrict__ bias, const elem_t* residual, int tokens,
                           int inputs, int outputs, int tiles, int slots, int column_parts, int columns, int norm_parts, int group_shift,
                           int groups, int activation, float eps) {
  extern __shared__ __align__(128) unsigned char dynamic[];
  Control& control = *reinterpret_cast<Control*>(dynamic);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, rank = blockIdx.z;
  const int sources = SPLITS * column_parts, pitch = columns * 2 + X_PADDING;
  // Sums of a tile and 8 tokens, four a lane, by slot, token block and source.
  float4* sums = reinterpret_cast<float4*>(dynamic + ceil_div(sizeof(Control), 128) * 128);
  unsigned char* rings = reinterpret_cast<unsigned char*>(sums + slots * TOKEN_BLOCKS * sources * WARP);
  unsigned char* staged = rings + WARPS * STAGES * STAGE_BYTES;
  unsigned char* staged_gamma = staged + tokens * pitch;
  float(*squares)[TOKENS] = reinterpret_cast<float(*)[TOKENS]>(staged_gamma + columns * 2);
  const uint32 x_full = shared_address(&control.x_full), sums_full = shared_address(&control.sums_full);
  const int team = blockIdx.x, each = static_cast<uint32>(tiles) / gridDim.x, rest = tiles - each * gridDim.x;
  const int first_tile = team * each + min(team, rest), end_tile = first_tile + each + (team < rest ? 1 : 0);
  const int blocks = inputs / BLOCK, first_block = blocks * rank / SPLITS, own_blocks = blocks * (rank + 1) / SPLITS - first_block;
  const int row_group = warp / column_parts, part = warp % column_parts;
  const Share share = {weight,
                       scales,
                       zeros,
                       end_tile,
                       WARPS / column_parts,
                       first_block + own_blocks * part / column_parts,
                       first_block + own_blocks * (part + 1) / column_parts,
                       blocks,
                       (GATED ? 2 * outputs : outputs) / STRIP,
                       group_shift,
                       groups};
  const unsigned char* ring = rings + warp * (STAGES * STAGE_BYTES);
  const uint32 ring_address = shared_address(ring);
  Cursor ahead = {share.first_block < share.end_block ? first_tile + row_group : end_tile, share.first_block};
  ahead.find(share);
#pragma unroll 1
  for (int i = 0; i < EARLY_STAGES; i++) ahead.fetch(ring_address + i * STAGE_BYTES, share);

  const int owned = ceil_div(end_tile - first_tile, SPLITS), own_tile = first_tile + rank * owned;
  const int count = max(0, min(end_tile - own_tile, owned)) * TOKEN_BLOCKS;
  if (threadIdx.x == 0) {
    barrier_init(x_full, 1);
    barrier_init(sums_full, 1);
    barrier_init_fence();
    // What the team's CTAs will send.
    barrier_expect(sums_full, count * sources * (WARP * 16) + (gamma ? SPLITS * tokens * 4 : 0));
  }
  __syncthreads();
  // The barriers of all CTAs are ready for what the others send.
  cluster_arrive_relaxed();

  const uint32 row_bytes = own_blocks * BLOCK * sizeof(elem_t);
  if (threadIdx.x == 0) {
    barrier_expect(x_full, (tokens + (gamma ? 1 : 0)) * row_bytes);
    if (gamma) copy_bytes(shared_address(staged_gamma), gamma + first_block * BLOCK, row_bytes, x_full);
  }
  __syncwarp();
  if (TEAMS > 1) cluster_wait();
  GRID_DEPENDENCY_WAIT();
  if (warp == 0 && lane < tokens) {
    const elem_t* from = x + static_cast<int64>(lane) * inputs + first_block * BLOCK;
    const uint32 to = shared_address(staged) + lane * pitch;
    if (TEAMS == 1)
      copy_bytes(to, from, row_bytes, x_full);
    else if (lane % TEAMS == team % TEAMS)
      copy_bytes_to_ranks(to, from, row_bytes, x_full, ((1 << TEAMS) - 1) << (rank * TEAMS));
  }
  __syncwarp();
  barrier_wait(x_full, 0);
#pragma unroll 1
  for (int i = EARLY_STAGES; i < STAGES - 1; i++) ahead.fetch(ring_address + i * STAGE_BYTES, share);
  if (TEAMS == 1) cluster_wait();
  // The address in another CTA of the team of what is at `address` here.
  const auto in_team = [&](const void* address, int to) {
    return address_in_rank(shared_address(address), to * TEAMS + team % TEAMS);
  };
  if (gamma) {
    const int vectors = own_blocks * (BLOCK / VEC);
    scale_inputs(staged, pitch, staged_gamma, squares, tokens, vectors, norm_parts);
    __syncthreads();
    if (threadIdx.x < tokens * SPLITS) {
      const int token = threadIdx.x / SPLITS, to = threadIdx.x % SPLITS;
      float sum = 0;
      for (int chunk = 0; chunk * WARP < vectors; chunk++) sum += squares[chunk][token];
      store_rank(in_team(&control.squares[rank][token], to), sum, in_team(&control.sums_full, to));
    }
  }
  // The next kernel finds room when this one ends, and waits for its outputs: it is launched meanwhile.
  if (warp == 0) GRID_DEPENDENCY_LAUNCH();

  // Lanes give ldmatrix the rows of tokens, those behind the last one that one.
  uint32 rows[TOKEN_BLOCKS];
#pragma unroll
  for (int block = 0; block < TOKEN_BLOCKS; block++)
    rows[block] = shared_address(staged) + min(block * 8 + lane % 8, tokens - 1) * pitch + lane / 8 * 16;
  const int source = rank * column_parts + part;
  int slot = 0, free = STAGES - 1;
#pragma unroll 1
  for (int tile = first_tile + row_group; tile < end_tile; tile += share.step) {
    float total[TOKEN_BLOCKS][4] = {};
#pragma unroll 1
    for (int block = share.first_block; block < share.end_block; block += STAGE_BLOCKS) {
      cp_async_wait<STAGES - 2>();
      __syncwarp();
      // Of the stage before this one all lanes have read what they need.
      ahead.fetch(ring_address + free * STAGE_BYTES, share);
      const unsigned char* stage = ring + slot * STAGE_BYTES;
      const int x_offset = (block - first_block) * (BLOCK * 2);
      if (block + STAGE_BLOCKS <= share.end_block) {
#pragma unroll
        for (int b = 0; b < STAGE_BLOCKS; b++) multiply_block(total, stage, b, rows, x_offset + b * (BLOCK * 2));
      } else {
#pragma unroll 1
        for (int b = 0; b < share.end_block - block; b++) multiply_block(total, stage, b, rows, x_offset + b * (BLOCK * 2));
      }
      free = slot;
      if (++slot == STAGES) slot = 0;
    }
    const int index = tile - first_tile, owner = index / owned;
    float4* own = sums + (index - owner * owned) * (TOKEN_BLOCKS * sources * WARP) + source * WARP + lane;
    const uint32 target = in_team(own, owner), arrival = in_team(&control.sums_full, owner);
#pragma unroll
    for (int i = 0; i < TOKEN_BLOCKS; i++)
      store_rank(target + i * sources * (WARP * 16), make_float4(total[i][0], total[i][1], total[i][2], total[i][3]), arrival);
  }

  const auto place = [&](int item) {
    const int block = item % TOKEN_BLOCKS, tile = own_tile + item / TOKEN_BLOCKS;
    return Outputs{out, bias, residual, tokens, outputs, activation, block * 8, tile * OUT_ROWS};
  };
  uint32 added[2] = {};
  if (warp < count) place(warp).load_residual(added);
  barrier_wait_cluster(sums_full, 0);
  for (int item = warp; item < count; item += WARPS) {
    const Outputs to = place(item);
    if (item >= WARPS) to.load_residual(added);
    const float4* from = sums + item * sources * WARP + lane;
    float4 sum = make_float4(0, 0, 0, 0);
    for (int i = 0; i < sources; i += SPLITS) {
      float4 v[SPLITS];
#pragma unroll
      for (int j = 0; j < SPLITS; j++) v[j] = from[(i + j) * WARP];
#pragma unroll
      for (int j = 0; j < SPLITS; j++) sum.x += v[j].x, sum.y += v[j].y, sum.z += v[j].z, sum.w += v[j].w;
    }
    float factors[2] = {1, 1};
    if (gamma)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        float squares = 0;
#pragma unroll
        for (int i = 0; i < SPLITS; i++) squares += control.squares[i][to.token0 + lane % 4 * 2 + j];
        factors[j] = rsqrtf(__fdividef(squares, inputs) + eps);
      }
    to.finish(sum, factors, added);
  }
}
