// The LM head of some ten to 256 tokens on Hopper with the draw in its epilogue: keys[T] of each row's best token. draw_rows
// (sampling.cu) takes them. Logits are never written.
//
//   maps    TensorMap [2]: of the weights [V, K] in boxes of TILE_ROWS rows by 64 columns, and of x [TOKENS, K], normed
//           already, in boxes of TOKENS rows by 64 columns; rows of x from T on may hold anything
//   keys    uint64 [T], 0 before: raised to the best key; NOT_A_NUMBER where a logit is a NaN
//   row_slots, positions  int32 [T]       params  uint32 [slots, SLOT_WORDS]
//   V are all tokens of the vocabulary or, with PART, those of one rank, from first_token on, a multiple of 4; without it they are
//   whole tiles, with it whole groups of 16
//
// Parallelisation: weights are wgmma's 64-row side, tokens the other. A CTA takes tiles of TILE_ROWS weight rows, one every
// gridDim.x; a warp keeps a ring of weights and x filled, 64 columns a stage, and two warpgroups multiply 64 rows each by all
// tokens.
// A warp hands its sums through shared memory, 32 tokens at a time, so that a thread scores four neighbouring tokens of the
// vocabulary, whose noise comes from one Philox block. Scores are bounded first, against the best that any CTA had found shortly
// before; what may be better is computed and raises the row's key, by an atomic maximum whose result does not depend on order.
// Why this version: at 256 tokens logits are 156 MB to write and to read, and the noise costs as much as the product. Here the
// one warpgroup scores while the other's products go on, as far as the ring lets it.
#include "gumbel.cuh"
#include "soft_cap.cuh"
#include "tensor_map.cuh"
#include "wgmma_wide.cuh"

#if !defined(TOKENS) || !defined(STAGES) || !defined(TILE_ROWS) || !defined(DRAW_SHARED_BYTES) || !defined(PART) || !defined(SOFT_CAP)
#error "TOKENS, STAGES, TILE_ROWS, DRAW_SHARED_BYTES, PART and SOFT_CAP come from src/backend/cuda/ops/draw-wgmma.ts"
#endif

constexpr int GROUPS = TILE_ROWS / 64;
constexpr int CONSUMER_WARPS = 4 * GROUPS, CONSUMERS = CONSUMER_WARPS * WARP, THREADS = CONSUMERS + 4 * WARP;
constexpr int K_TILE = 64;
constexpr uint32 WEIGHT_BYTES = TILE_ROWS * K_TILE * 2, X_BYTES = TOKENS * K_TILE * 2;
// Tokens of a warp's sums that are handed over at a time.
constexpr int CHUNK = 32;
// Floats from a token's 16 sums to the next one's: stores of a quad's tokens fall on different banks.
constexpr int PITCH = 20;
static_assert(GROUPS == 2, "two warpgroups multiply");
static_assert(TOKENS == 64 || TOKENS == 128 || TOKENS == 256, "a tile has 64, 128 or 256 tokens");

struct TokenNoise {
  uint32 seed_low, seed_high, position;
  float temperature;
};

struct Shared {
  unsigned char weights[STAGES][WEIGHT_BYTES];
  unsigned char x[STAGES][X_BYTES];
  float sums[CONSUMER_WARPS][CHUNK][PITCH];
  TokenNoise noise[TOKENS];
  float scales[TOKENS];
  // Bounds below a row's leader cannot win. Of each warpgroup, for the tile under way and the next.
  float leaders[GROUPS][2][TOKENS];
  uint64 full[STAGES], empty[STAGES];
};
static_assert(sizeof(Shared) <= DRAW_SHARED_BYTES, "the host must ask for room for Shared");

using Position = RingPosition<STAGES>;

// ── the warp that fetches ────────────────────────────────────────────────────────────────────────────────────────────

__device__ __forceinline__ void fetch(Shared& shared, const TensorMap* maps, int rounds, int k_tiles) {
  const bool leads = threadIdx.x % WARP == 0;
  const int steps = rounds * k_tiles;
  const auto fetch_weights = [&](int step, int stage) {
    const uint32 full = shared_address(&shared.full[stage]);
    barrier_expect(full, WEIGHT_BYTES + X_BYTES);
    const int tile = blockIdx.x + step / k_tiles * gridDim.x;
    copy_box<2>(shared_address(shared.weights[stage]), maps, full, step % k_tiles * K_TILE, tile * TILE_ROWS);
  };
  const auto fetch_x = [&](int step, int stage) {
    copy_box<2>(shared_address(shared.x[stage]), maps + 1, shared_address(&shared.full[stage]), step % k_tiles * K_TILE, 0);
  };
  const int first = min(STAGES, steps);
  if (leads) {
    tensor_map_fence(maps);
    for (int i = 0; i < first; i++) fetch_weights(i, i);
  }
  __syncwarp();
  GRID_DEPENDENCY_WAIT();
  if (leads) {
    tensor_map_fence(maps + 1);
    asm volatile("fence.proxy.async;" ::: "memory");
    for (int i = 0; i < first; i++) fetch_x(i, i);
  }
  __syncwarp();
  Position at;
#pragma unroll 1
  for (int i = first; i < steps; i++, at.advance()) {
    barrier_wait(shared_address(&shared.empty[at.stage]), at.phase);
    if (leads) fetch_weights(i, at.stage), fetch_x(i, at.stage);
    __syncwarp();
  }
  GRID_DEPENDENCY_LAUNCH();
}

// ── warpgroups that multiply ─────────────────────────────────────────────────────────────────────────────────────────

// Sums of 64 rows and all tokens.
using Sums = float[TOKENS / 2];

__device__ __forceinline__ void give_back(uint64* empty) {
  if (threadIdx.x % WARP == 0) barrier_arrive(shared_address(empty));
}

// Calls `late` when all but the last stages have been multiplied.
template <class F>
__device__ __forceinline__ void multiply(Sums& d, Shared& shared, Position& at, int k_tiles, F late) {
  const int group = threadIdx.x / (4 * WARP);
  uint64* before = nullptr;
#pragma unroll
  for (int i = 0; i < TOKENS / 2; i++) d[i] = 0;
  wgmma_pin(d);
#pragma unroll 1
  for (int k = 0; k < k_tiles; k++) {
    barrier_wait(shared_address(&shared.full[at.stage]), at.phase);
    const uint32 weights = shared_address(shared.weights[at.stage]) + group * 64 * K_TILE * 2;
    const uint32 x = shared_address(shared.x[at.stage]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < K_TILE / 16; i++) {
      const uint64 a = matrix_descriptor(weights + i * 32, 1024), b = matrix_descriptor(x + i * 32, 1024);
#if TOKENS == 256
      wgmma(d, a, b, 1);
#else
      wgmma_shared(d, a, b, 1);
#endif
    }
    wgmma_commit();
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (before) give_back(before);
    if (k == max(k_tiles - 2, 0)) late();
    before = &shared.empty[at.stage];
    at.advance();
  }
  wgmma_wait<0>(d);
  give_back(before);
}

// ── scoring ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// The score that a bound must reach where this is a row's best key. Greedy bounds are the scores.
__device__ __forceinline__ float leader_of(uint64 key, float temperature) {
  if (key == 0) return -infinity();
  if (key == NOT_A_NUMBER) return infinity();
  return temperature == 0 ? key_value(key) : with_slack(key_value(key) * LOG2_E);
}

__device__ __forceinline__ float element(float4 v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

// Four neighbouring tokens of the vocabulary for one row.
struct Item {
  float4 logits;
  uint4 words;
  Noise noise;
  float leader;
  int row;
  bool contends;
};

// The best key of tokens id … id + 3. Few items come so far but in a CTA's first tile, where all do: without branches, the
// latencies of the four overlap.
__device__ __forceinline__ uint64 best_of(const Item& item, int id) {
  uint64 best = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float logit = element(item.logits, i);
    const float score = item.noise.temperature == 0 ? logit : score_of(item.noise, logit, word_of(item.words, i));
    uint64 key = logit == -infinity() ? 0 : rank_key(score, id + i);
    if (logit != logit) key = NOT_A_NUMBER;
    best = key > best ? key : best;
  }
  return best;
}

// Scores a warp's sums of 16 weight rows, those of vocabulary tokens id … id + 15, for all rows.
__device__ __forceinline__ void score(const Sums& d, Shared& shared, float* leaders, uint64* keys, int tokens, int id,
                                      float cap) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, r = lane / 4, c = lane % 4;
  float(&sums)[CHUNK][PITCH] = shared.sums[warp];
#pragma unroll 1
  for (int chunk = 0; chunk * CHUNK < tokens; chunk++) {
#pragma unroll
    for (int k = 0; k < TOKENS / CHUNK; k++) {
      if (k != chunk) continue;
#pragma unroll
      for (int i = 0; i < CHUNK / 2; i++)
        sums[i / 4 * 8 + c * 2 + i % 2][i / 2 % 2 * 8 + r] = d[k * (CHUNK / 2) + i];
    }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < CHUNK / 8 && chunk * CHUNK + i * 8 < tokens; i += 2) {
      Item items[2];
      bool any = false;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        Item& item = items[j];
        const int at = (i + j) * 8 + r;
        item.row = chunk * CHUNK + at;
        item.contends = item.row < tokens;
        if (!item.contends) continue;
        item.logits = *reinterpret_cast<const float4*>(&sums[at][c * 4]);
        if (SOFT_CAP)
          item.logits = make_float4(soft_cap(item.logits.x, cap), soft_cap(item.logits.y, cap),
                                    soft_cap(item.logits.z, cap), soft_cap(item.logits.w, cap));
        const TokenNoise own = shared.noise[item.row];
        item.noise = {own.temperature, shared.scales[item.row], own.seed_low, own.seed_high, own.position};
        item.leader = leaders[item.row];
        const float4 logits = item.logits;
        const float most = max_or_nan(max_or_nan(logits.x, logits.y), max_or_nan(logits.z, logits.w));
        // Not even the greatest noise there is would do. What is not a number is not below the leader either.
        item.contends = !(most * item.noise.scale + (own.temperature > 0 ? GREATEST_NOISE : 0) < item.leader);
        any |= item.contends;
      }
      if (!__any_sync(FULL_MASK, any)) continue;
      any = false;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        Item& item = items[j];
        if (!item.contends) continue;
        if (item.noise.temperature > 0) {
          item.words = noise_words(item.noise, id / 4 + c);
          item.contends = false;
#pragma unroll
          for (int i = 0; i < 4; i++)
            item.contends |= !(score_bound(item.noise, element(item.logits, i), word_of(item.words, i)) < item.leader);
        }
        any |= item.contends;
      }
      if (!__any_sync(FULL_MASK, any)) continue;
#pragma unroll
      for (int j = 0; j < 2; j++) {
        Item& item = items[j];
        uint64 best = item.contends ? best_of(item, id + c * 4) : 0;
        // A quad has the 16 tokens of a row.
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) {
          const uint64 other = __shfl_xor_sync(FULL_MASK, best, offset);
          best = other > best ? other : best;
        }
        if (c != 0 || best == 0) continue;
        const float leader = leader_of(best, shared.noise[item.row].temperature);
        if (leader < leaders[item.row]) continue;
        // Whichever warp stores last: each has been reached.
        leaders[item.row] = leader;
        atomicMax(reinterpret_cast<unsigned long long*>(keys + item.row), best);
      }
    }
    __syncwarp();
  }
}

// Grid: at most a CTA a tile, all resident. `k_tiles` is K / 64, `tiles` V / TILE_ROWS, the last one's rows past V being zeros.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    draw_wgmma(uint64* keys, const TensorMap* maps, const int32* row_slots, const int32* positions, const uint32* params,
               int tokens, int vocab, int first_token, int tiles, int k_tiles, float cap) {
  extern __shared__ __align__(1024) unsigned char dynamic[];
  Shared& shared = *reinterpret_cast<Shared*>(dynamic);
  const int warp = threadIdx.x / WARP;
  const int rounds = (tiles - 1 - static_cast<int>(blockIdx.x)) / static_cast<int>(gridDim.x) + 1;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      barrier_init(shared_address(&shared.full[i]), 1);
      barrier_init(shared_address(&shared.empty[i]), CONSUMER_WARPS);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (warp >= CONSUMER_WARPS) {
    release_registers<40>();
    if (warp == CONSUMER_WARPS) fetch(shared, maps, rounds, k_tiles);
  } else {
    acquire_registers<232>();
    GRID_DEPENDENCY_WAIT();
    for (int token = threadIdx.x; token < TOKENS; token += CONSUMERS) {
      if (token >= tokens) continue;
      const Noise noise = noise_of(load_slot_params(params, row_slots[token]), positions[token]);
      shared.noise[token] = {noise.seed_low, noise.seed_high, noise.position, noise.temperature};
      shared.scales[token] = noise.temperature > 0 ? noise.scale : 1;
    }
    named_barrier_sync(1, CONSUMERS);
    const int group = warp / 4, thread = threadIdx.x % (4 * WARP);
    constexpr int OWN = ceil_div(TOKENS, 4 * WARP);
    Position at;
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
      // Of this thread's rows, the best that is known.
      uint64 known[OWN];
      const auto own_row = [&](int i) { return thread + i * 4 * WARP; };
      Sums d;
      multiply(d, shared, at, k_tiles, [&] {
#pragma unroll
        for (int i = 0; i < OWN; i++)
          if (own_row(i) < tokens) known[i] = load_key(keys + own_row(i));
      });
      float* leaders = shared.leaders[group][round % 2];
#pragma unroll
      for (int i = 0; i < OWN; i++)
        if (own_row(i) < tokens) leaders[own_row(i)] = leader_of(known[i], shared.noise[own_row(i)].temperature);
      named_barrier_sync(2 + group, 4 * WARP);
      const int output = (blockIdx.x + round * gridDim.x) * TILE_ROWS + warp * 16;
      if (!PART || output < vocab) score(d, shared, leaders, keys, tokens, (PART ? first_token : 0) + output, cap);
    }
  }
}
