// convolve: queries and keys of rows of prompts, convolved, activated and made unit vectors, and values, convolved and activated. The
// first of the three kernels of delta_chunks.cuh.
//
//   mixed  elem_t [piece tokens, channels]
//
// Parallelisation: a warp CONVOLVED_TOKENS tokens of a head, which may be of several rows; a lane neighbouring channels of the head.
// Why this version: a warp reads an input once and keeps those of the tokens before in registers; the next AHEAD are under way meanwhile.
// Only for its first token and where a row begins does it read earlier ones: those of this step from the projections, those of earlier
// steps from the row's ring.
// Measured on an H100 (16 key and 32 value heads of 128), under ncu: 82 µs a piece of 4,096 tokens.
#include "delta_chunks.cuh"

#if !defined(CONV_WIDTH)
#error "CONV_WIDTH comes from src/backend/cuda/ops/delta-dims.ts"
#endif
#if !defined(CONVOLVED_TOKENS)
#error "CONVOLVED_TOKENS comes from src/backend/cuda/ops/delta-prompts.ts"
#endif

// Tokens whose inputs are under way while as many are convolved.
constexpr int AHEAD = 2;

template <int N>
__device__ __forceinline__ void load_weights(const elem_t* p, float (&weights)[N]) {
  if constexpr (N % VEC == 0) {
#pragma unroll
    for (int i = 0; i < N; i += VEC) load_elems<VEC>(p + i, reinterpret_cast<float(&)[VEC]>(weights[i]));
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) weights[i] = to_float(p[i]);
  }
}

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
  const int first = begin + (blockIdx.x * WARPS + threadIdx.x / WARP) * CONVOLVED_TOKENS;
  if (first >= end) return;
  const int last = min(first + CONVOLVED_TOKENS, end);
  float weights[PER_LANE * CONV_WIDTH];
  load_weights(convolution + static_cast<int64>(channel) * CONV_WIDTH, weights);
  int row = row_of_token(cu_seqlens, first_row, rows, first);
  int start = load_coherent(cu_seqlens + row), stop = load_coherent(cu_seqlens + row + 1);
  if (first >= stop) return;
  const elem_t* ring;
  int shift;  // what a token's position is more than its index
  float x[CONV_WIDTH][PER_LANE];
  const auto input = [&](int token) { return projected + static_cast<int64>(token) * width + channel; };
  const auto begin_row = [&](int token) {
    shift = load_coherent(context_lens + row) - stop;
    ring = tails + (static_cast<int64>(load_coherent(row_slots + row)) * layers + layer) * CONV_WIDTH * channels + channel;
#pragma unroll
    for (int w = 1; w < CONV_WIDTH; w++) {
      const int seen = token - CONV_WIDTH + w;
      if (seen >= start) load_few<PER_LANE>(input(seen), x[w]);
      else
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
          x[w][i] = seen + shift >= 0 ? to_float(load_coherent(ring + (seen + shift) % CONV_WIDTH * channels + i)) : 0;
    }
  };
  Few<PER_LANE> ahead[AHEAD];
  const auto fetch = [&](int token) {
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (token + i < last) ahead[i].load(input(token + i));
  };
  fetch(first);
  begin_row(first);
  for (int group = first; group < last; group += AHEAD) {
    Few<PER_LANE> inputs[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) inputs[i] = ahead[i];
    fetch(group + AHEAD);
#pragma unroll
    for (int of_group = 0; of_group < AHEAD; of_group++) {
      const int token = group + of_group;
      if (token >= last) return;
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
      inputs[of_group].unpack(x[CONV_WIDTH - 1]);
      float y[PER_LANE], squares = 0;
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < CONV_WIDTH; w++) sum += weights[i * CONV_WIDTH + w] * x[w][i];
        y[i] = sum * sigmoid(sum);
        squares += y[i] * y[i];
      }
      const float factor = UNIT ? scale * rsqrtf(warp_sum(is_own ? squares : 0) + UNIT_EPSILON) : 1;
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) y[i] *= factor;
      if (is_own) store_few<PER_LANE>(mixed + static_cast<int64>(token - begin) * channels + channel, y);
    }
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
