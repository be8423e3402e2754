// delta_decode: the gated delta rule for rows of one token, from projections to gated outputs (see delta_net.cuh).
//   out  elem_t [rows, value_heads · VALUE_DIM]
// gated_norm: out[t, h] = norm(out[t, h]) · weight · silu(z), of tokens from `first` on.
//
// Parallelisation: delta_decode: grid (rows, value heads · SPLIT); a thread holds ROWS rows of four columns of the state in registers.
// With SPLIT > 1, from Hopper on, a head's columns are divided among the blocks of a cluster, which exchange sums for its norm: a few
// rows then keep all multiprocessors reading. gated_norm: a warp a head of a token.
// Why this version: a step's bytes are those of the states, read and written once; so the state is on its way before the kernel waits
// for the projections, and both products of it, with k and with q, are of the state as it was read: Sᵀq after the update is
// decay · Sᵀq + (k·q) · delta, so one reduction over the block serves both. The convolution is here, too: value heads that share a key
// head compute its channels again, which is less than another launch.
#include "delta_net.cuh"

#if !defined(CONV_WIDTH)
#error "CONV_WIDTH comes from src/backend/cuda/ops/delta-dims.ts"
#endif
#if !defined(DECODE_THREADS) || !defined(NORM_THREADS) || !defined(SPLIT)
#error "DECODE_THREADS, NORM_THREADS and SPLIT come from src/backend/cuda/ops/delta-net.ts"
#endif

// Columns of a block, and accesses of four of them.
constexpr int OWN_DIM = VALUE_DIM / SPLIT;
constexpr int COLUMNS = OWN_DIM / 4;
constexpr int ROWS = KEY_DIM * COLUMNS / 256 > 0 ? KEY_DIM * COLUMNS / 256 : 1;
constexpr int GROUPS = KEY_DIM / ROWS;
constexpr int THREADS = GROUPS * COLUMNS;
static_assert(THREADS % WARP == 0 && THREADS >= OWN_DIM && THREADS == DECODE_THREADS,
              "DECODE_THREADS, of src/backend/cuda/ops/delta-net.ts, hold a state");
// Channels of a head's queries and keys and of the block's values, and those of a thread.
constexpr int INPUTS = 2 * KEY_DIM + OWN_DIM;
constexpr int OWN_INPUTS = (INPUTS + THREADS - 1) / THREADS;

__device__ __forceinline__ float4 load_float4(const float* p) {
  const uint4 v = load16_coherent(p);
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

// The sum over the blocks of a cluster, in the order of their ranks. All threads of all of them call it.
__device__ __forceinline__ float sum_over_parts(float own, int part) {
#if SPLIT > 1
  __shared__ float sums[SPLIT];
  if (threadIdx.x < SPLIT) {
    uint32 there;
    const uint32 here = static_cast<uint32>(__cvta_generic_to_shared(&sums[part]));
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(threadIdx.x));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(own) : "memory");
  }
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  own = 0;
#pragma unroll
  for (int i = 0; i < SPLIT; i++) own += sums[i];
#endif
  return own;
}

// GPUs before Hopper know no clusters, and have none to make.
#if SPLIT == 1
#undef __cluster_dims__
#define __cluster_dims__(...)
#endif

extern "C" __global__ void __cluster_dims__(1, SPLIT, 1) __launch_bounds__(DECODE_THREADS)
    delta_decode(elem_t* __restrict__ out, const elem_t* projected, const float* gates, elem_t* tails, float* states,
                 const elem_t* __restrict__ convolution, const float* __restrict__ decay_log,
                 const float* __restrict__ time_bias, const elem_t* __restrict__ norm_weight, const int32* context_lens,
                 const int32* row_slots, int32 key_heads, int32 value_heads, int32 layers, int32 layer, float eps) {
  __shared__ float inputs[INPUTS];
  __shared__ __align__(16) float partial[2][GROUPS][OWN_DIM];
  __shared__ __align__(16) float deltas[OWN_DIM];
  GRID_DEPENDENCY_LAUNCH();
  const Heads heads{key_heads, value_heads};
  const int row = blockIdx.x, head = blockIdx.y / SPLIT, part = blockIdx.y % SPLIT, thread = threadIdx.x;
  const int first_value = head * VALUE_DIM + part * OWN_DIM;
  const int column = thread % COLUMNS, group = thread / COLUMNS;
  // Published by prepare_batch; states and tails are those of the step before, which has ended.
  const int position = load_coherent(context_lens + row) - 1;
  const int64 place = static_cast<int64>(load_coherent(row_slots + row)) * layers + layer;
  float* const state = states + (place * value_heads + head) * (KEY_DIM * VALUE_DIM) + group * ROWS * VALUE_DIM +
                       part * OWN_DIM + column * 4;
  float4 s[ROWS];
#pragma unroll
  for (int i = 0; i < ROWS; i++) s[i] = position > 0 ? load_float4(state + i * VALUE_DIM) : make_float4(0, 0, 0, 0);

  const int channels = heads.channels(), key_head = heads.key_head_of(head);
  elem_t* const ring = tails + place * CONV_WIDTH * channels;
  const auto channel_of = [&](int input) {
    if (input < KEY_DIM) return key_head * KEY_DIM + input;
    if (input < 2 * KEY_DIM) return heads.keys() + key_head * KEY_DIM + input - KEY_DIM;
    return 2 * heads.keys() + first_value + input - 2 * KEY_DIM;
  };
  float before[OWN_INPUTS] = {}, last[OWN_INPUTS] = {};
#pragma unroll
  for (int own = 0; own < OWN_INPUTS; own++) {
    const int input = own * THREADS + thread;
    if (input >= INPUTS) break;
    const int channel = channel_of(input);
    const elem_t* const weights = convolution + static_cast<int64>(channel) * CONV_WIDTH;
#pragma unroll
    for (int w = 0; w < CONV_WIDTH - 1; w++) {
      const int seen = position - (CONV_WIDTH - 1) + w;
      if (seen >= 0) before[own] += to_float(weights[w]) * to_float(load_coherent(ring + seen % CONV_WIDTH * channels + channel));
    }
    last[own] = to_float(weights[CONV_WIDTH - 1]);
  }
  const float decay_scale = decay_log[head], bias = time_bias[head];
  GRID_DEPENDENCY_WAIT();

  const elem_t* const token = projected + static_cast<int64>(row) * heads.width();
  const float b = load_float(gates + row * 2 * value_heads + head);
  const float a = load_float(gates + row * 2 * value_heads + value_heads + head);
#pragma unroll
  for (int own = 0; own < OWN_INPUTS; own++) {
    const int input = own * THREADS + thread;
    if (input >= INPUTS) break;
    const int channel = channel_of(input);
    const elem_t x = load_coherent(token + channel);
    const float sum = before[own] + last[own] * to_float(x);
    inputs[input] = sum * sigmoid(sum);
    if (input >= 2 * KEY_DIM || (part == 0 && heads.is_first_of_key(head))) ring[position % CONV_WIDTH * channels + channel] = x;
  }
  const float z = thread < OWN_DIM ? to_float(load_coherent(token + channels + first_value + thread)) : 0;
  __syncthreads();

  // Each warp for itself: lengths of q and k, and their product.
  const float* const q = inputs;
  const float* const k = inputs + KEY_DIM;
  float qq = 0, kk = 0, kq = 0;
#pragma unroll
  for (int i = thread % WARP; i < KEY_DIM; i += WARP) qq += q[i] * q[i], kk += k[i] * k[i], kq += k[i] * q[i];
  const float unit_q = rsqrtf(warp_sum(qq) + UNIT_EPSILON) * rsqrtf(static_cast<float>(KEY_DIM));
  const float unit_k = rsqrtf(warp_sum(kk) + UNIT_EPSILON);
  kq = warp_sum(kq) * unit_q * unit_k;

  float4 with_k = make_float4(0, 0, 0, 0), with_q = with_k;
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    add_scaled(with_k, s[i], k[group * ROWS + i]);
    add_scaled(with_q, s[i], q[group * ROWS + i]);
  }
  *reinterpret_cast<float4*>(&partial[0][group][column * 4]) = with_k;
  *reinterpret_cast<float4*>(&partial[1][group][column * 4]) = with_q;
  __syncthreads();

  const float decay = expf(log_decay(a, decay_scale, bias));
  float o = 0;
  if (thread < OWN_DIM) {
    float of_k = 0, of_q = 0;
#pragma unroll
    for (int i = 0; i < GROUPS; i++) of_k += partial[0][i][thread], of_q += partial[1][i][thread];
    const float delta = sigmoid(b) * (inputs[2 * KEY_DIM + thread] - decay * unit_k * of_k);
    deltas[thread] = delta * unit_k;
    o = decay * unit_q * of_q + kq * delta;
  }
  __syncthreads();
  const float4 delta = *reinterpret_cast<const float4*>(&deltas[column * 4]);
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    const float key = k[group * ROWS + i];
    *reinterpret_cast<float4*>(state + i * VALUE_DIM) =
        make_float4(decay * s[i].x + key * delta.x, decay * s[i].y + key * delta.y, decay * s[i].z + key * delta.z,
                    decay * s[i].w + key * delta.w);
  }
  const float scale = rsqrtf(sum_over_parts(block_sum(o * o), part) / VALUE_DIM + eps);
  if (thread < OWN_DIM)
    out[static_cast<int64>(row) * value_heads * VALUE_DIM + first_value + thread] =
        from_float(o * scale * to_float(norm_weight[part * OWN_DIM + thread]) * z * sigmoid(z));
}

// Grid: a warp of each block for each head of each token, of `count` together.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    gated_norm(elem_t* out, const elem_t* projected, const elem_t* __restrict__ norm_weight, int32 first, int32 count,
               int32 key_heads, int32 value_heads, float eps) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Heads heads{key_heads, value_heads};
  const int index = blockIdx.x * (NORM_THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (index >= count) return;
  constexpr int PER_LANE = VALUE_DIM > WARP ? VALUE_DIM / WARP : 1;
  const int64 token = first + index / value_heads;
  const int head = index % value_heads;
  elem_t* const o = out + (token * value_heads + head) * VALUE_DIM + lane * PER_LANE;
  const elem_t* const gate = projected + token * heads.width() + heads.channels() + head * VALUE_DIM + lane * PER_LANE;
  const bool is_own = lane * PER_LANE < VALUE_DIM;
  float x[PER_LANE] = {}, squares = 0;
  if (is_own) load_few<PER_LANE>(o, x);
#pragma unroll
  for (int i = 0; i < PER_LANE; i++) squares += x[i] * x[i];
  const float scale = rsqrtf(warp_sum(squares) / VALUE_DIM + eps);
  if (!is_own) return;
  float z[PER_LANE];
  load_few<PER_LANE>(gate, z);
#pragma unroll
  for (int i = 0; i < PER_LANE; i++)
    x[i] *= scale * to_float(norm_weight[lane * PER_LANE + i]) * z[i] * sigmoid(z[i]);
  store_few<PER_LANE>(o, x);
}
