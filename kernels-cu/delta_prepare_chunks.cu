// prepare_chunks: of each chunk, value head by value head, all that does not depend on the state before it: weights W, updates U,
// products P of keys with queries, and decays G. The second of the three kernels of delta_chunks.cuh.
//
//   W  elem_t [piece tokens, value_heads, KEY_DIM]       U  elem_t [piece tokens, value_heads, VALUE_DIM]
//   P  elem_t [piece tokens, value_heads, CHUNK]         G  float  [piece tokens, value_heads]
//
// Parallelisation: a block a chunk of a value head; its warps have 16 tokens each.
// Why this version: no chunk waits for another, and all products are of tensor cores with float sums. The inverse of a triangle is in
// float: substitutions of 16 tokens, which are short, and products of squares, which all threads share.
// Measured on an H100 (16 key and 32 value heads of 128), under ncu: 134 µs a piece of 4,096 tokens, three blocks a multiprocessor.
#include "delta_chunks.cuh"
#include "delta_tiles.cuh"

#if !defined(PREPARE_BYTES)
#error "PREPARE_BYTES comes from src/backend/cuda/ops/delta-prompts.ts"
#endif

// Floats between rows of M and T, whose accesses are of 16 bytes.
constexpr int SQUARE_STRIDE = CHUNK + 4;

struct PrepareShared {
  Tile<CHUNK, KEY_DIM> keys;
  Tile<CHUNK, VALUE_DIM> values;
  // T takes the place of the queries, once they have been multiplied.
  union {
    Tile<CHUNK, KEY_DIM> queries;
    float __align__(16) t[CHUNK][SQUARE_STRIDE];
  };
  float __align__(16) m[CHUNK][SQUARE_STRIDE];
  float decays[CHUNK], betas[CHUNK];
};
static_assert(sizeof(PrepareShared) == PREPARE_BYTES, "PREPARE_BYTES is the size of PrepareShared");

// y = left · right of a thread's ROWS rows and four columns of squares of N floats, which N² / (4 · ROWS) threads have together. Both
// begin at a row and a column of M or T.
template <int N, int ROWS>
__device__ __forceinline__ void multiply_squares(float4 (&y)[ROWS], const float* left, const float* right, int thread) {
  const int row = thread / (N / 4) * ROWS, column = thread % (N / 4) * 4;
#pragma unroll
  for (int i = 0; i < ROWS; i++) y[i] = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int k = 0; k < N; k += 4) {
    float4 b[4];
#pragma unroll
    for (int e = 0; e < 4; e++) b[e] = *reinterpret_cast<const float4*>(right + (k + e) * SQUARE_STRIDE + column);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
      const float4 a = *reinterpret_cast<const float4*>(left + (row + i) * SQUARE_STRIDE + k);
      add_scaled(y[i], b[0], a.x), add_scaled(y[i], b[1], a.y), add_scaled(y[i], b[2], a.z), add_scaled(y[i], b[3], a.w);
    }
  }
}

// Of a triangle whose diagonal squares of N have their inverses in T, those of 2 · N: below the diagonal T = -T₂₂ · (M · T₁₁). All threads
// of the block call; what is in M's place below the diagonal is lost.
template <int N>
__device__ __forceinline__ void join_inverses(float (&t)[CHUNK][SQUARE_STRIDE], float (&m)[CHUNK][SQUARE_STRIDE]) {
  constexpr int SHARE = PREFILL_THREADS / (CHUNK / (2 * N)), ROWS = N * N / 4 / SHARE;
  const int thread = threadIdx.x % SHARE, first = threadIdx.x / SHARE * 2 * N;
  const int row = thread / (N / 4) * ROWS, column = thread % (N / 4) * 4;
  float* const below = &m[first + N][first];
  float4 y[ROWS];
  multiply_squares<N>(y, below, &t[first][first], thread);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < ROWS; i++) *reinterpret_cast<float4*>(below + (row + i) * SQUARE_STRIDE + column) = y[i];
  __syncthreads();
  multiply_squares<N>(y, &t[first + N][first + N], below, thread);
#pragma unroll
  for (int i = 0; i < ROWS; i++)
    *reinterpret_cast<float4*>(&t[first + N + row + i][first + column]) = make_float4(-y[i].x, -y[i].y, -y[i].z, -y[i].w);
  __syncthreads();
}

// T = (I + M)⁻¹ of a triangle M, which is lost. Of squares of LEAF it is a substitution, a column a thread; they are joined in pairs.
__device__ __forceinline__ void invert(float (&t)[CHUNK][SQUARE_STRIDE], float (&m)[CHUNK][SQUARE_STRIDE]) {
  constexpr int LEAF = 16;
  const int thread = threadIdx.x;
  if (thread < CHUNK) {
    const int first = thread / LEAF * LEAF, own = thread % LEAF;
    float x[LEAF];
#pragma unroll
    for (int i = 0; i < LEAF; i++) {
      float sums[2] = {};
#pragma unroll
      for (int j = 0; j < i; j++) sums[j % 2] += m[first + i][first + j] * x[j];
      x[i] = (i == own ? 1.0f : 0.0f) - (sums[0] + sums[1]);
      t[first + i][thread] = x[i];
    }
  } else {
    // Above the diagonal of the squares that are joined: they are multiplied whole.
    for (int i = thread - CHUNK; i < CHUNK / 2 * LEAF; i += PREFILL_THREADS - CHUNK) {
      const int row = i / LEAF % LEAF + i / LEAF / LEAF * 2 * LEAF;
      t[row][row / LEAF * LEAF + LEAF + i % LEAF] = 0;
    }
  }
  __syncthreads();
  join_inverses<LEAF>(t, m);
  join_inverses<2 * LEAF>(t, m);
}

// Rows of T by columns that `scale` multiplies, times `right`, to 16 rows a warp of `to`.
template <int COLUMNS>
__device__ __forceinline__ void multiply_inverse(elem_t* to, int64 stride, int count, const float (&t)[CHUNK][SQUARE_STRIDE],
                                                 const float (&scale)[CHUNK], const Tile<CHUNK, COLUMNS>& right) {
  const int warp = threadIdx.x / WARP, r = threadIdx.x % WARP / 4, c = threadIdx.x % 4 * 2;
  // Of a triangle, columns past the warp's rows are zeros.
  uint32 a[WARPS][4];
#pragma unroll
  for (int k = 0; k < WARPS; k++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = warp * 16 + r + i % 2 * 8, column = k * 16 + c + i / 2 * 8;
      const float2 pair = *reinterpret_cast<const float2*>(&t[row][column]);
      a[k][i] = pack2(pair.x * scale[column], pair.y * scale[column + 1]);
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
extern "C" __global__ void __launch_bounds__(PREFILL_THREADS, 3)
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
  uint32 own_keys[KEY_DIM / 16][4], own_queries[KEY_DIM / 16][4];
#pragma unroll
  for (int k = 0; k < KEY_DIM / 16; k++) {
    shared.keys.load_a(own_keys[k], warp * 16, k * 16);
    shared.queries.load_a(own_queries[k], warp * 16, k * 16);
  }
#pragma unroll
  for (int column = 0; column < CHUNK; column += 16) {
    float kk[2][4] = {}, qk[2][4] = {};
    if (column < (warp + 1) * 16) {
#pragma unroll
      for (int k = 0; k < KEY_DIM / 16; k++) {
        uint32 b[4];
        shared.keys.load_b(b, column, k * 16);
        multiply_pair(kk, own_keys[k], b);
        multiply_pair(qk, own_queries[k], b);
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
  invert(shared.t, shared.m);
  const int64 rows_apart = value_heads;
  multiply_inverse<VALUE_DIM>(updates + place * VALUE_DIM, rows_apart * VALUE_DIM, count, shared.t, shared.betas, shared.values);
  __syncthreads();
  if (thread < CHUNK) shared.betas[thread] *= __expf(shared.decays[thread]);
  __syncthreads();
  multiply_inverse<KEY_DIM>(weights + place * KEY_DIM, rows_apart * KEY_DIM, count, shared.t, shared.betas, shared.keys);
}
