// advance_states: from chunk to chunk of rows of prompts, outputs before their norm, and states; in the end the rings of the convolution.
// The last of the three kernels of delta_chunks.cuh.
//
//   out  elem_t [tokens, value_heads, VALUE_DIM]
//
// Parallelisation: a block PART columns of a value head's state, of one row; they do not depend on each other's. Each WARPS warps
// have the tokens of a chunk, and the keys of the state, by 16; the next WARPS, where there are more, have other columns.
// Why this version: all products are of tensor cores with float sums; only what one chunk hands to the next, the state, is in sequence,
// and it stays in the registers of the products that add to it, in float. With two STAGES the next chunk is on its way meanwhile.
// A least number of blocks in the launch bounds is what lets the compiler take more than 128 registers.
// Measured on an H100 (16 key and 32 value heads of 128), under ncu: 195 µs a piece of 4,096 tokens, 3.0 a chunk. Other versions are in
// bench/NOTES.md.
#include "delta_chunks.cuh"
#include "delta_tiles.cuh"

#if !defined(CONV_WIDTH)
#error "CONV_WIDTH comes from src/backend/cuda/ops/delta-dims.ts"
#endif
#if !defined(PART) || !defined(STAGES) || !defined(ADVANCE_BYTES) || !defined(ADVANCE_THREADS)
#error "PART, STAGES, ADVANCE_BYTES and ADVANCE_THREADS come from src/backend/cuda/ops/delta-prompts.ts"
#endif
static_assert(PART % 16 == 0 && VALUE_DIM % PART == 0, "parts of a state are pairs of 8 columns");

struct ChunkShared {
  Tile<CHUNK, KEY_DIM> weights, queries, keys;
  Tile<CHUNK, CHUNK> products;
  Tile<CHUNK, PART> updates;
};
struct AdvanceShared {
  ChunkShared chunks[STAGES];
  // Of this chunk and the next.
  float decays[2][CHUNK];
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
extern "C" __global__ void __launch_bounds__(ADVANCE_THREADS, 1)
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
    }
    cp_async_commit();
  };
  // A thread's decay of a chunk; past its tokens a chunk does not decay.
  const auto decay_of = [&](int chunk) {
    if (thread >= CHUNK || chunk >= chunks) return 0.0f;
    const int first = row.chunk_first(chunk), last = row.chunk_end(chunk) - 1;
    return load_float(decays + static_cast<int64>(min(first + thread, last) - begin) * value_heads + head);
  };
  if (STAGES > 1) fetch(0);
  if (thread < CHUNK) shared.decays[0][thread] = decay_of(0);

  // The state, as the sums of the products that add to it: rows r and r + 8 of a tile, columns c and c + 1 of 8.
  float state[OWN_TILES][PAIRS][2][4];
  const auto each_tile = [&](auto visit) {
#pragma unroll
    for (int tile = 0; tile < OWN_TILES; tile++) {
      const int key = (tile * WARPS + warp) * 16;
      if (key >= KEY_DIM) break;
      visit(state[tile], key);
    }
  };
  const auto each_pair = [&](auto visit) {
    each_tile([&](float(&sums)[PAIRS][2][4], int key) {
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int half = 0; half < 2; half++)
            visit(sums[pair][j][half * 2], sums[pair][j][half * 2 + 1], key + r + half * 8,
                  first_column + pair * 16 + j * 8 + c);
    });
  };
  float* const stored = states + (place * value_heads + head) * (KEY_DIM * VALUE_DIM) + part * PART;
  const bool is_new = row.position == 0;
  each_pair([&](float& first, float& second, int key, int column) {
    const float* const from = stored + key * VALUE_DIM + column;
    first = is_new ? 0 : load_float(from), second = is_new ? 0 : load_float(from + 1);
  });

  for (int chunk = 0; chunk < chunks; chunk++) {
    fetch(STAGES > 1 ? chunk + 1 : chunk);
    const float next_decay = decay_of(chunk + 1);
    each_pair([&](float& first, float& second, int key, int column) { shared.state.store2(key, column, first, second); });
    cp_async_wait<(STAGES > 1 ? 1 : 0)>();
    __syncthreads();
    const ChunkShared& of = shared.chunks[chunk % STAGES];
    const float(&log_decays)[CHUNK] = shared.decays[chunk % 2];
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
    const float last = log_decays[CHUNK - 1];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int t = warp * 16 + r + half * 8;
      const float decay = __expf(log_decays[t]), kept = __expf(last - log_decays[t]);
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
    uint32 kept[CHUNK / 16][PAIRS][4];
#pragma unroll
    for (int k = 0; k < CHUNK / 16; k++)
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++) shared.kept.load_b_trans(kept[k][pair], first_column + pair * 16, k * 16);
    each_tile([&](float(&sums)[PAIRS][2][4], int key) {
#pragma unroll
      for (int pair = 0; pair < PAIRS; pair++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) sums[pair][j][i] *= decay;
#pragma unroll
      for (int k = 0; k < CHUNK / 16; k++) {
        uint32 a[4];
        of.keys.load_a_trans(a, key, k * 16);
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) multiply_pair(sums[pair], a, kept[k][pair]);
      }
    });
    if (thread < CHUNK) shared.decays[(chunk + 1) % 2][thread] = next_decay;
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
