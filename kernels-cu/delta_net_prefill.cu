// The gated delta rule for rows of prompts, a piece of the batch at a time (see delta_net.cuh, delta_chunks.cuh):
//
//   convolve        mixed: queries and keys convolved, activated and made unit vectors, and values convolved and activated
//   prepare_chunks  of each chunk, value head by value head: weights W, updates U, products P of keys with queries, and decays G
//   advance_states  from chunk to chunk: outputs before their norm, and states; last, the rings of the convolution
//
//   mixed   elem_t [piece tokens, channels]                    W  elem_t [piece tokens, value_heads, KEY_DIM]
//   U       elem_t [piece tokens, value_heads, VALUE_DIM]      P  elem_t [piece tokens, value_heads, CHUNK]
//   G       float  [piece tokens, value_heads]: sums of log decays from the chunk's first token on
//
// With S the state before a chunk, tokens s <= t of it, decays d(s, t) = exp(G_t - G_s) and b_t = exp(G_t) (Yang et al. 2024, the WY form):
//   M_ts = beta_t · d(s, t) · k_t·k_s for s < t        T = (I + M)⁻¹
//   W = T · (beta · b · K)      U = T · (beta · V)      P_ts = d(s, t) · q_t·k_s
//   D = U - W·S                 O = b · Q·S + P·D       S ← b_last · S + Kᵀ·(d(t, last) · D)
//
// Parallelisation: prepare_chunks: a block a chunk of a value head; its warps have 16 tokens each. advance_states: a block PART columns
// of a value head's state, of one row; they do not depend on each other's.
// Why this version: all products are of tensor cores with float sums; only what one chunk hands to the next, the state, is in sequence,
// and it stays in the registers of the products that add to it, in float.
#include "delta_chunks.cuh"
#include "mma.cuh"

#if !defined(PREFILL_THREADS) || !defined(CONVOLVED_TOKENS)
#error "PREFILL_THREADS and CONVOLVED_TOKENS come from src/backend/cuda/ops/delta-net.ts"
#endif
#if !defined(PART) || !defined(STAGES) || !defined(PREPARE_BYTES) || !defined(ADVANCE_BYTES) || !defined(ADVANCE_THREADS)
#error "PART, STAGES, PREPARE_BYTES, ADVANCE_BYTES and ADVANCE_THREADS come from src/backend/cuda/ops/delta-net.ts"
#endif
constexpr int WARPS = PREFILL_THREADS / WARP;
static_assert(WARPS * 16 == CHUNK, "each warp has 16 tokens of a chunk");
static_assert(PART % 16 == 0 && VALUE_DIM % PART == 0, "parts of a state are pairs of 8 columns");
// Rows of tiles in shared memory are apart by 16 bytes more than they have, so that those that are read together lie on different banks.
constexpr int PAD = VEC;

// ── convolution ─────────────────────────────────────────────────────────────────────────────────────────────────────

// One head of DIM channels, from `channel` on, of CONVOLVED_TOKENS tokens a warp; of queries and keys unit vectors times `scale`.
template <int DIM, bool UNIT>
__device__ __forceinline__ void convolve_head(elem_t* mixed, const elem_t* projected, const elem_t* tails,
                                              const elem_t* convolution, const int32* cu_seqlens, const int32* context_lens,
                                              const int32* row_slots, const Heads& heads, int layers, int layer, int first_row,
                                              int rows, int begin, int end, int channel, float scale) {
  constexpr int PER_LANE = DIM > WARP ? DIM / WARP : 1;
  const int lane = threadIdx.x % WARP, channels = heads.channels(), width = heads.width();
  const bool is_own = lane * PER_LANE < DIM;
  channel += is_own ? lane * PER_LANE : 0;
  float weights[CONV_WIDTH][PER_LANE];
#pragma unroll
  for (int w = 0; w < CONV_WIDTH; w++)
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) weights[w][i] = to_float(convolution[static_cast<int64>(channel + i) * CONV_WIDTH + w]);
  const int first = begin + (blockIdx.x * WARPS + threadIdx.x / WARP) * CONVOLVED_TOKENS;
  if (first >= end) return;
  int row = row_of_token(cu_seqlens, first_row, rows, first);
  int start = load_coherent(cu_seqlens + row), stop = load_coherent(cu_seqlens + row + 1);
  if (first >= stop) return;
  const elem_t* ring;
  int shift;  // what a token's position is more than its index
  float x[CONV_WIDTH][PER_LANE];
  const auto load = [&](float(&of)[PER_LANE], int token) {
    load_few<PER_LANE>(projected + static_cast<int64>(token) * width + channel, of);
  };
  const auto begin_row = [&](int token) {
    shift = load_coherent(context_lens + row) - stop;
    ring = tails + (static_cast<int64>(load_coherent(row_slots + row)) * layers + layer) * CONV_WIDTH * channels + channel;
#pragma unroll
    for (int w = 1; w < CONV_WIDTH; w++) {
      const int seen = token - CONV_WIDTH + w;
      if (seen >= start) load(x[w], seen);
      else
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
          x[w][i] = seen + shift >= 0 ? to_float(load_coherent(ring + (seen + shift) % CONV_WIDTH * channels + i)) : 0;
    }
  };
  begin_row(first);
  for (int token = first; token < min(first + CONVOLVED_TOKENS, end); token++) {
    if (token >= stop) {
      // Rows have a token at least.
      if (++row == first_row + rows) return;
      start = stop, stop = load_coherent(cu_seqlens + row + 1);
      if (token >= stop) return;
      begin_row(token);
    }
#pragma unroll
    for (int w = 0; w < CONV_WIDTH - 1; w++)
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) x[w][i] = x[w + 1][i];
    load(x[CONV_WIDTH - 1], token);
    float y[PER_LANE], squares = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < CONV_WIDTH; w++) sum += weights[w][i] * x[w][i];
      y[i] = sum * sigmoid(sum);
      squares += y[i] * y[i];
    }
    const float factor = UNIT ? scale * rsqrtf(warp_sum(is_own ? squares : 0) + UNIT_EPSILON) : 1;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) y[i] *= factor;
    if (is_own) store_few<PER_LANE>(mixed + static_cast<int64>(token - begin) * channels + channel, y);
  }
}

// Grid (tokens of a block, query, key and value heads).
extern "C" __global__ void __launch_bounds__(PREFILL_THREADS)
    convolve(elem_t* __restrict__ mixed, const elem_t* projected, const elem_t* tails, const elem_t* __restrict__ convolution,
             const int32* cu_seqlens, const int32* context_lens, const int32* row_slots, int32 first_row, int32 rows,
             int32 begin, int32 end, int32 key_heads, int32 value_heads, int32 layers, int32 layer) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Heads heads{key_heads, value_heads};
  const int head = blockIdx.y;
  if (head < 2 * key_heads)
    convolve_head<KEY_DIM, true>(mixed, projected, tails, convolution, cu_seqlens, context_lens, row_slots, heads, layers, layer,
                                 first_row, rows, begin, end, head * KEY_DIM,
                                 head < key_heads ? rsqrtf(static_cast<float>(KEY_DIM)) : 1);
  else
    convolve_head<VALUE_DIM, false>(mixed, projected, tails, convolution, cu_seqlens, context_lens, row_slots, heads, layers,
                                    layer, first_row, rows, begin, end,
                                    2 * heads.keys() + (head - 2 * key_heads) * VALUE_DIM, 1);
}

// ── tiles of shared memory ──────────────────────────────────────────────────────────────────────────────────────────

template <int ROWS, int COLUMNS>
struct Tile {
  elem_t rows[ROWS][COLUMNS + PAD];

  // Rows from `from` on, `stride` elements apart, of which `count` are there; zeros for the others.
  template <int THREADS>
  __device__ __forceinline__ void copy(const elem_t* from, int64 stride, int count) {
    constexpr int PIECES = COLUMNS / VEC;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
      const int row = i / PIECES, piece = i % PIECES;
      const bool valid = row < count;
      cp_async16(shared_address(&rows[row][piece * VEC]), from + (valid ? row * stride + piece * VEC : 0), valid);
    }
  }
  // Fragment of A: rows from `row` on, k from `k` on.
  __device__ __forceinline__ void load_a(uint32 (&a)[4], int row, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, shared_address(&rows[row + lane % 16][k + lane / 16 * 8]));
  }
  // The same of the transpose: rows are k.
  __device__ __forceinline__ void load_a_trans(uint32 (&a)[4], int row, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(a, shared_address(&rows[k + lane % 8 + lane / 16 * 8][row + lane / 8 % 2 * 8]));
  }
  // Fragments of B for 16 columns, which are rows here: columns from `column` on, k from `k` on.
  __device__ __forceinline__ void load_b(uint32 (&b)[4], int column, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(b, shared_address(&rows[column + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]));
  }
  // The same where rows are k.
  __device__ __forceinline__ void load_b_trans(uint32 (&b)[4], int column, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(b, shared_address(&rows[k + lane % 16][column + lane / 16 * 8]));
  }
  __device__ __forceinline__ void store2(int row, int column, float first, float second) {
    *reinterpret_cast<uint32*>(&rows[row][column]) = pack2(first, second);
  }
};

// d[0] and d[1], of 8 columns each, += A · B.
__device__ __forceinline__ void multiply_pair(float (&d)[2][4], const uint32 (&a)[4], const uint32 (&b)[4]) {
  mma_m16n8k16(d[0], a[0], a[1], a[2], a[3], b[0], b[1]);
  mma_m16n8k16(d[1], a[0], a[1], a[2], a[3], b[2], b[3]);
}

__device__ __forceinline__ void store_pair(elem_t* to, float first, float second) {
  *reinterpret_cast<uint32*>(to) = pack2(first, second);
}

// ── what chunks can be made ready by themselves ─────────────────────────────────────────────────────────────────────

struct PrepareShared {
  Tile<CHUNK, KEY_DIM> keys, queries;
  Tile<CHUNK, VALUE_DIM> values;
  // M, and its inverse's columns.
  float __align__(16) m[CHUNK][CHUNK + 4];
  float t[CHUNK][CHUNK + 1];
  float decays[CHUNK], betas[CHUNK];
};
static_assert(sizeof(PrepareShared) == PREPARE_BYTES, "PREPARE_BYTES is the size of PrepareShared");

// Rows of T by columns that `scale` multiplies, times `right`, to 16 rows a warp of `to`.
template <int COLUMNS>
__device__ __forceinline__ void multiply_inverse(elem_t* to, int64 stride, int count, const float (&t)[CHUNK][CHUNK + 1],
                                                 const float (&scale)[CHUNK], const Tile<CHUNK, COLUMNS>& right) {
  const int warp = threadIdx.x / WARP, r = threadIdx.x % WARP / 4, c = threadIdx.x % 4 * 2;
  // Of a triangle, columns past the warp's rows are zeros.
  uint32 a[WARPS][4];
#pragma unroll
  for (int k = 0; k < WARPS; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = warp * 16 + r + i % 2 * 8, column = k * 16 + c + i / 2 * 8;
      a[k][i] = pack2(t[row][column] * scale[column], t[row][column + 1] * scale[column + 1]);
    }
#pragma unroll
  for (int column = 0; column < COLUMNS; column += 16) {
    float d[2][4] = {};
#pragma unroll
    for (int k = 0; k < WARPS; k++) {
      if (k > warp) break;
      uint32 b[4];
      right.load_b_trans(b, column, k * 16);
      multiply_pair(d, a[k], b);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int row = warp * 16 + r + half * 8;
        if (row < count) store_pair(to + row * stride + column + j * 8 + c, d[j][half * 2], d[j][half * 2 + 1]);
      }
  }
}

// Grid (numbers of chunks, value heads).
extern "C" __global__ void __launch_bounds__(PREFILL_THREADS)
    prepare_chunks(elem_t* __restrict__ weights, elem_t* __restrict__ updates, elem_t* __restrict__ products,
                   float* __restrict__ decays, const elem_t* mixed, const float* gates, const float* __restrict__ decay_log,
                   const float* __restrict__ time_bias, const int32* cu_seqlens, const int32* context_lens, int32 first_row,
                   int32 rows, int32 begin, int32 end, int32 key_heads, int32 value_heads) {
  extern __shared__ __align__(16) unsigned char memory[];
  PrepareShared& shared = *reinterpret_cast<PrepareShared*>(memory);
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Heads heads{key_heads, value_heads};
  const int head = blockIdx.y, thread = threadIdx.x, warp = thread / WARP, r = thread % WARP / 4, c = thread % 4 * 2;
  const int index = row_of_chunk(cu_seqlens, first_row, rows, begin, end, blockIdx.x);
  const RowPart part(cu_seqlens, context_lens, first_row + index, begin, end);
  const int chunk = blockIdx.x - first_chunk_of(cu_seqlens, first_row + index, index, begin, end);
  if (chunk >= part.chunks()) return;
  const int first = part.chunk_first(chunk), count = part.chunk_end(chunk) - first;

  const int channels = heads.channels(), key_head = heads.key_head_of(head);
  const elem_t* const token = mixed + static_cast<int64>(first - begin) * channels;
  shared.queries.copy<PREFILL_THREADS>(token + key_head * KEY_DIM, channels, count);
  shared.keys.copy<PREFILL_THREADS>(token + heads.keys() + key_head * KEY_DIM, channels, count);
  shared.values.copy<PREFILL_THREADS>(token + 2 * heads.keys() + head * VALUE_DIM, channels, count);
  cp_async_commit();
  if (thread < CHUNK) {
    const float* const gate = gates + static_cast<int64>(first + thread) * 2 * value_heads + head;
    const bool valid = thread < count;
    shared.betas[thread] = valid ? sigmoid(load_float(gate)) : 0;
    shared.decays[thread] = valid ? log_decay(load_float(gate + value_heads), decay_log[head], time_bias[head]) : 0;
  }
  __syncthreads();
  if (warp == 0) {
    // Sums of pairs over the warp.
    const int lane = thread;
    const float x0 = shared.decays[2 * lane], x1 = shared.decays[2 * lane + 1];
    float sum = x0 + x1;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
      const float other = __shfl_up_sync(FULL_MASK, sum, offset);
      if (lane >= offset) sum += other;
    }
    shared.decays[2 * lane] = sum - x1, shared.decays[2 * lane + 1] = sum;
  }
  cp_async_wait<0>();
  __syncthreads();
  const int64 place = static_cast<int64>(first - begin) * value_heads + head;
  if (thread < count) decays[place + static_cast<int64>(thread) * value_heads] = shared.decays[thread];

  // Products of keys with keys and with queries, 16 columns at a time.
#pragma unroll
  for (int column = 0; column < CHUNK; column += 16) {
    float kk[2][4] = {}, qk[2][4] = {};
    if (column < (warp + 1) * 16) {
#pragma unroll
      for (int k = 0; k < KEY_DIM; k += 16) {
        uint32 b[4], a[4];
        shared.keys.load_b(b, column, k);
        shared.keys.load_a(a, warp * 16, k);
        multiply_pair(kk, a, b);
        shared.queries.load_a(a, warp * 16, k);
        multiply_pair(qk, a, b);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int t = warp * 16 + r + half * 8, s = column + j * 8 + c;
        float m[2], p[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float decay = s + i <= t ? __expf(shared.decays[t] - shared.decays[s + i]) : 0;
          m[i] = s + i < t ? shared.betas[t] * decay * kk[j][half * 2 + i] : 0;
          p[i] = decay * qk[j][half * 2 + i];
        }
        *reinterpret_cast<float2*>(&shared.m[t][s]) = make_float2(m[0], m[1]);
        if (t < count) store_pair(products + (place + static_cast<int64>(t) * value_heads) * CHUNK + s, p[0], p[1]);
      }
  }
  __syncthreads();
  // A column of the inverse each, from the top.
  if (thread < CHUNK) {
    float x[CHUNK];
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
      float sums[4] = {};
#pragma unroll
      for (int j = 0; j < i; j++) sums[j % 4] += shared.m[i][j] * x[j];
      x[i] = (i == thread ? 1.0f : 0.0f) - ((sums[0] + sums[1]) + (sums[2] + sums[3]));
      shared.t[i][thread] = x[i];
    }
  }
  __syncthreads();
  const int64 rows_apart = value_heads;
  multiply_inverse<VALUE_DIM>(updates + place * VALUE_DIM, rows_apart * VALUE_DIM, count, shared.t, shared.betas, shared.values);
  __syncthreads();
  if (thread < CHUNK) shared.betas[thread] *= __expf(shared.decays[thread]);
  __syncthreads();
  multiply_inverse<KEY_DIM>(weights + place * KEY_DIM, rows_apart * KEY_DIM, count, shared.t, shared.betas, shared.keys);
}

// ── from chunk to chunk ─────────────────────────────────────────────────────────────────────────────────────────────

struct ChunkShared {
  Tile<CHUNK, KEY_DIM> weights, queries, keys;
  Tile<CHUNK, CHUNK> products;
  Tile<CHUNK, PART> updates;
  float decays[CHUNK];
};
struct AdvanceShared {
  ChunkShared chunks[STAGES];
  Tile<KEY_DIM, PART> state;
  // D, and D as it is when the chunk ends.
  Tile<CHUNK, PART> deltas, kept;
};
static_assert(sizeof(AdvanceShared) == ADVANCE_BYTES, "ADVANCE_BYTES is the size of AdvanceShared");

// Pairs of 8 columns of a warp: the warps of each next WARPS have other columns.
constexpr int PAIRS = PART / 16 * PREFILL_THREADS / ADVANCE_THREADS;
static_assert(PAIRS * 16 * ADVANCE_THREADS == PART * PREFILL_THREADS, "warps divide the columns");
// Rows of 16 keys of the state that a warp has: its own, and every WARPSth after it.
constexpr int KEY_TILES = KEY_DIM / 16;
constexpr int OWN_TILES = (KEY_TILES + WARPS - 1) / WARPS;

// Grid (value heads · parts, rows).
extern "C" __global__ void __launch_bounds__(ADVANCE_THREADS)
    advance_states(elem_t* __restrict__ out, const elem_t* weights, const elem_t* updates, const elem_t* products,
                   const float* decays, const elem_t* mixed, const elem_t* projected, elem_t* tails, float* states,
                   const int32* cu_seqlens, const int32* context_lens, const int32* row_slots, int32 first_row, int32 begin,
                   int32 end, int32 key_heads, int32 value_heads, int32 layers, int32 layer) {
  extern __shared__ __align__(16) unsigned char memory[];
  AdvanceShared& shared = *reinterpret_cast<AdvanceShared*>(memory);
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  constexpr int PARTS = VALUE_DIM / PART;
  const Heads heads{key_heads, value_heads};
  const int head = blockIdx.x / PARTS, part = blockIdx.x % PARTS, row_index = first_row + blockIdx.y;
  const int thread = threadIdx.x, warp = thread / WARP % WARPS, r = thread % WARP / 4, c = thread % 4 * 2;
  const int first_column = thread / PREFILL_THREADS * PAIRS * 16;
  const RowPart row(cu_seqlens, context_lens, row_index, begin, end);
  const int chunks = row.chunks();
  if (chunks == 0) return;
  const int channels = heads.channels(), key_head = heads.key_head_of(head);
  const int64 place = static_cast<int64>(load_coherent(row_slots + row_index)) * layers + layer;

  const auto fetch = [&](int chunk) {
    if (chunk < chunks) {
      ChunkShared& to = shared.chunks[chunk % STAGES];
      const int first = row.chunk_first(chunk), count = row.chunk_end(chunk) - first;
      const int64 at = static_cast<int64>(first - begin) * value_heads + head;
      const elem_t* const token = mixed + static_cast<int64>(first - begin) * channels + key_head * KEY_DIM;
      to.weights.copy<ADVANCE_THREADS>(weights + at * KEY_DIM, static_cast<int64>(value_heads) * KEY_DIM, count);
      to.queries.copy<ADVANCE_THREADS>(token, channels, count);
      to.keys.copy<ADVANCE_THREADS>(token + heads.keys(), channels, count);
      to.products.copy<ADVANCE_THREADS>(products + at * CHUNK, static_cast<int64>(value_heads) * CHUNK, count);
      to.updates.copy<ADVANCE_THREADS>(updates + at * VALUE_DIM + part * PART, static_cast<int64>(value_heads) * VALUE_DIM, count);
      // Past its tokens a chunk does not decay.
      if (thread < CHUNK) to.decays[thread] = load_float(decays + at + static_cast<int64>(min(thread, count - 1)) * value_heads);
    }
    cp_async_commit();
  };
  if (STAGES > 1) fetch(0);

  // The state, as the sums of the products that add to it: rows r and r + 8 of a tile, columns c and c + 1 of 8.
  float state[OWN_TILES][PAIRS][2][4];
  const auto each_pair = [&](auto visit) {
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++) {
      const int key = (tile * WARPS + warp) * 16;
      if (key >= KEY_DIM) break;
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            visit(state[tile][pair][j][half * 2], state[tile][pair][j][half * 2 + 1], key + r + half * 8,
                  first_column + pair * 16 + j * 8 + c);
    }
  };
  float* const stored = states + (place * value_heads + head) * (KEY_DIM * VALUE_DIM) + part * PART;
  const bool is_new = row.position == 0;
  each_pair([&](float& first, float& second, int key, int column) {
    const float* const from = stored + key * VALUE_DIM + column;
    first = is_new ? 0 : load_float(from), second = is_new ? 0 : load_float(from + 1);
  });

  for (int chunk = 0; chunk < chunks; chunk++) {
    fetch(STAGES > 1 ? chunk + 1 : chunk);
    each_pair([&](float& first, float& second, int key, int column) { shared.state.store2(key, column, first, second); });
    cp_async_wait<(STAGES > 1 ? 1 : 0)>();
    __syncthreads();
    const ChunkShared& of = shared.chunks[chunk % STAGES];
    const int first = row.chunk_first(chunk), count = row.chunk_end(chunk) - first;

    float delta[PAIRS][2][4] = {}, o[PAIRS][2][4] = {};
#pragma unroll
    for (int k = 0; k < KEY_DIM; k += 16) {
      uint32 w[4], q[4];
      of.weights.load_a(w, warp * 16, k);
      of.queries.load_a(q, warp * 16, k);
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) {
        uint32 b[4];
        shared.state.load_b_trans(b, first_column + pair * 16, k);
        multiply_pair(delta[pair], w, b);
        multiply_pair(o[pair], q, b);
      }
    }
    const float last = of.decays[CHUNK - 1];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int t = warp * 16 + r + half * 8;
      const float decay = __expf(of.decays[t]), kept = __expf(last - of.decays[t]);
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int column = first_column + pair * 16 + j * 8 + c;
          float u0, u1;
          unpack2(*reinterpret_cast<const uint32*>(&of.updates.rows[t][column]), u0, u1);
          float(&d)[4] = delta[pair][j];
          const float d0 = u0 - d[half * 2], d1 = u1 - d[half * 2 + 1];
          shared.deltas.store2(t, column, d0, d1);
          shared.kept.store2(t, column, d0 * kept, d1 * kept);
          o[pair][j][half * 2] *= decay, o[pair][j][half * 2 + 1] *= decay;
        }
    }
    __syncthreads();

#pragma unroll
    for (int k = 0; k < CHUNK; k += 16) {
      if (k > warp * 16) break;
      uint32 p[4];
      of.products.load_a(p, warp * 16, k);
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) {
        uint32 b[4];
        shared.deltas.load_b_trans(b, first_column + pair * 16, k);
        multiply_pair(o[pair], p, b);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int t = warp * 16 + r + half * 8;
      if (t >= count) continue;
      elem_t* const to = out + (static_cast<int64>(first + t) * value_heads + head) * VALUE_DIM + part * PART + first_column;
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < 2; j++) store_pair(to + pair * 16 + j * 8 + c, o[pair][j][half * 2], o[pair][j][half * 2 + 1]);
    }

    const float decay = __expf(last);
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++) {
      const int key = (tile * WARPS + warp) * 16;
      if (key >= KEY_DIM) break;
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) state[tile][pair][j][i] *= decay;
#pragma unroll
      for (int k = 0; k < CHUNK; k += 16) {
        uint32 a[4];
        of.keys.load_a_trans(a, key, k);
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
          uint32 b[4];
          shared.kept.load_b_trans(b, first_column + pair * 16, k);
          multiply_pair(state[tile][pair], a, b);
        }
      }
    }
    __syncthreads();
  }
  each_pair([&](float& first, float& second, int key, int column) {
    *reinterpret_cast<float2*>(stored + key * VALUE_DIM + column) = make_float2(first, second);
  });

  // The ring, of a row that ends here: `convolve` has read what it held.
  if (row.goes_on || part != 0) return;
  elem_t* const ring = tails + place * CONV_WIDTH * channels;
  const auto keep = [&](int channel, int dim) {
    const int start = load_coherent(cu_seqlens + row_index);
    for (int i = thread; i < (CONV_WIDTH - 1) * dim; i += ADVANCE_THREADS) {
      const int token = row.end - 1 - i / dim, at = channel + i % dim;
      if (token < start) break;
      const int position = row.position + token - row.first;
      ring[position % CONV_WIDTH * channels + at] = load_coherent(projected + static_cast<int64>(token) * heads.width() + at);
    }
  };
  keep(2 * heads.keys() + head * VALUE_DIM, VALUE_DIM);
  if (!heads.is_first_of_key(head)) return;
  keep(key_head * KEY_DIM, KEY_DIM);
  keep(heads.keys() + key_head * KEY_DIM, KEY_DIM);
}
