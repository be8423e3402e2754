// sample_tiles, sample_rows: draw one token a row from logits.  draw_rows: from the candidates of kernels that score logits
// themselves.
//
//   logits        float [rows, vocab]               row_slots, positions  int32 [rows]
//   processed     float [rows, vocab], of which only rows of slots with flags are read; may be logits
//   params        uint32 [slots, SLOT_WORDS]        tokens    int32 [slots, capacity], of which lengths int32 [slots]
//   counts        uint32 [slots, vocab]             stats     TileStats [rows, tiles]
//   In sample_tiles logits may be those of one rank, from first_token on: candidates.cu goes on from its stats.
//
// The draw is the argmax of logit / temperature + Gumbel noise over the tokens that min-p, top-k and top-p keep. The
// noise depends on seed, position and token alone, so neither the batch nor the launch shape changes a row's token.
//
// Parallelisation: sample_tiles: a warp a tile, so that one row fills many SMs and many rows need no block-wide barrier. sample_rows: a
// block a row. draw_rows: a warp a row.
// Why this version: greedy and temperature rows end with one read of the logits and a reduction of a few hundred tiles; the
// logarithms of the noise are computed for the few tokens whose score may be the best by a bound that costs one. The three
// filters keep the most likely tokens down to some logit. The tile maxima bound it from below: where no more tokens than a
// block has threads reach the bound, which is the rule for top-k, each thread ranks one of them. Where more do, a token passes
// if its own logit does, so the winner of the whole row is tested, and only when it fails is the winner among strictly more
// likely tokens sought. Nothing is sorted.
//
// Measured on an H100, 151,936 tokens, top-k 50 with top-p 0.9 over plain temperature, worst of flat, normal, peaked and Zipf
// logits: 27 µs at 1 row, 51 µs at 256 (28 and 66 before candidates were ranked by threads; without the Zipf logits in the
// order of their ids 14 and 31).
#include "gumbel.cuh"
#include "logits.cuh"
#include "tile_stats.cuh"

#if !defined(DREW_NOT_A_NUMBER) || !defined(DREW_NOTHING_ALLOWED)
#error "DREW_NOT_A_NUMBER and DREW_NOTHING_ALLOWED come from src/backend/cuda/ops/sampling.ts"
#endif

// ── drawing a token ─────────────────────────────────────────────────────────────────────────────────────────────────

static_assert(LANE_VECTORS * 4 <= 32, "LOGIT_TILE must give a lane at most 32 logits, a bit of one word each");

// The best key of the tile's tokens above a limit; logits has −inf for those that are not, `most` is the greatest. 0 when there
// is none. The row's first logit is that of token `first`, a multiple of 4. Scores are bounded first; then those that may be the
// best are computed: the ones near the greatest bound, and those whose bound is not below the best of these.
__device__ __forceinline__ uint64 best_of_tile(const TileLogits& logits, const float* row, int tile, int vocab, int first,
                                               float most, float limit, const Noise& noise) {
  if (most == -infinity()) return 0;
  constexpr float NEAR = 0.05f;
  float bound[LANE_VECTORS * 4];
  float leader = -infinity();
#pragma unroll
  for (int i = 0; i < LANE_VECTORS; i++) {
    const float4 v = logits.vectors[i];
    bound[4 * i] = v.x, bound[4 * i + 1] = v.y, bound[4 * i + 2] = v.z, bound[4 * i + 3] = v.w;
    if (noise.temperature == 0) continue;
    const uint4 words = noise_words(noise, (first + lane_token(tile, i)) / 4);
    const uint32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      bound[4 * i + j] = score_bound(noise, bound[4 * i + j], word[j]);
      leader = fmaxf(leader, bound[4 * i + j]);
    }
  }
  const float greatest = noise.temperature == 0 ? most : unordered(warp_max_uint(ordered(leader)));
  // Bit i of a set: this lane's i-th logit. What is not a number is in: overflowing scores.
  const auto reaching = [&](float threshold) {
    uint32 set = 0;
#pragma unroll
    for (int i = 0; i < LANE_VECTORS * 4; i++)
      if (!(bound[i] < threshold)) set |= 1u << i;
    return set;
  };
  uint32 set = reaching(noise.temperature == 0 ? most : greatest - NEAR), done = 0;
  uint64 best = 0;
#pragma unroll 1
  do {
    done |= set;
#pragma unroll 1
    for (; set != 0; set &= set - 1) {
      const int i = __ffs(set) - 1, token = lane_token(tile, i / 4) + i % 4;
      if (token >= vocab) continue;
      const float logit = row[token];
      if (!(logit > limit)) continue;
      const uint64 key = score_key(noise, logit, first + token);
      best = key > best ? key : best;
    }
    best = warp_max_key(best);
    if (noise.temperature > 0) set = reaching(with_slack(key_value(best) * LOG2_E)) & ~done;
  } while (__any_sync(FULL_MASK, set != 0));
  return best;
}

// Rows without work are those that the model gave.
__device__ __forceinline__ const float* logits_of(int row, const SlotParams& slot, const float* logits,
                                                  const float* processed, int vocab) {
  return (slot.flags == 0 ? logits : processed) + static_cast<int64>(row) * vocab;
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    sample_tiles(TileStats* __restrict__ stats, const float* __restrict__ logits, const float* __restrict__ processed,
                 const int32* __restrict__ row_slots, const int32* __restrict__ positions,
                 const uint32* __restrict__ params, int32 vocab, int32 first_token, int32 tiles) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = blockIdx.y;
  const int tile = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  if (tile >= tiles) return;
  const SlotParams slot = load_slot_params(params, row_slots[row]);
  const float* row_logits = logits_of(row, slot, logits, processed, vocab);
  const TileLogits tile_logits = load_tile(row_logits, tile, vocab);

  const float most = tile_maximum(tile_logits);
  const bool needs_mass = slot.temperature > 0 && slot.top_p < 1;
  const float exp_sum = needs_mass ? tile_exp_sum(tile_logits, most, 1 / slot.temperature) : 0;
  const uint64 best = best_of_tile(tile_logits, row_logits, tile, vocab, first_token, most, -infinity(),
                                   noise_of(slot, positions[row]));
  if (threadIdx.x % WARP == 0)
    stats[static_cast<int64>(row) * tiles + tile] = {most, exp_sum, static_cast<uint32>(best >> 32),
                                                     static_cast<uint32>(best)};
}

// ── rows with filters ───────────────────────────────────────────────────────────────────────────────────────────────

// One row whose slot has a temperature, for the whole block.
struct FilteredRow {
  LogitRow logits;
  const TileStats* stats;  // [tiles]
  float most;
  SlotParams slot;
  Noise noise;

  // A token's mass relative to the most likely one's.
  __device__ __forceinline__ float mass(float logit) const { return __expf((logit - most) / slot.temperature); }
};

struct Candidates {
  float logit[ROW_THREADS];
  int32 token[ROW_THREADS];
  float mass[ROW_THREADS];  // in the order of the logits
  int32 count;
};

// Finds the tokens at or above `least` and returns their number; when there are more than ROW_THREADS, some greater number.
__device__ __forceinline__ int find_candidates(Candidates& found, const LogitRow& row, float least) {
  __syncthreads();
  if (threadIdx.x == 0) found.count = 0;
  __syncthreads();
  visit_tiles(row, least, [&](int tile, const TileLogits& logits) {
    int own = 0;
    for_each_logit(logits, tile, [&](float logit, int token) { own += token < row.vocab && logit >= least; });
    int end = own;
#pragma unroll
    for (int offset = 1; offset < WARP; offset *= 2) {
      const int before = __shfl_up_sync(FULL_MASK, end, offset);
      if (static_cast<int>(threadIdx.x) % WARP >= offset) end += before;
    }
    int start = 0;
    if (threadIdx.x % WARP == WARP - 1) start = atomicAdd(&found.count, end);
    int at = __shfl_sync(FULL_MASK, start, WARP - 1) + end - own;
    for_each_logit(logits, tile, [&](float logit, int token) {
      if (token >= row.vocab || !(logit >= least)) return;
      if (at < ROW_THREADS) found.logit[at] = logit, found.token[at] = token;
      at++;
    });
  });
  __syncthreads();
  return found.count;
}

// The drawn token, of candidates among which are all that top-k keeps. A thread has a candidate; those before it in the order
// of logits are counted, so that the result does not depend on the order in which they were found.
__device__ __forceinline__ int draw_candidate(Candidates& found, int count, const FilteredRow& row) {
  const int i = threadIdx.x;
  const bool present = i < count;
  const float logit = present ? found.logit[i] : 0;
  const int token = present ? found.token[i] : 0;
  int greater = 0, before = 0;
  if (present) {
#pragma unroll 4
    for (int j = 0; j < count; j++) {
      const float other = found.logit[j];
      greater += other > logit;
      before += other == logit && found.token[j] < token;
    }
  }
  const int top_k = row.slot.top_k > 0 ? row.slot.top_k : row.logits.vocab;
  bool kept = present && greater < top_k;
  if (row.slot.top_p < 1) {
    found.mass[i] = 0;
    __syncthreads();
    if (kept) found.mass[greater + before] = row.mass(logit);
    __syncthreads();
    float above;
    const float total = block_exclusive_sum(found.mass[i], above);
    __syncthreads();
    found.mass[i] = above;
    __syncthreads();
    kept = kept && found.mass[greater] < row.slot.top_p * total;
  }
  return key_token(block_max_key(kept ? score_key(row.noise, logit, token) : 0));
}

// The mass of the tokens strictly above a logit.
__device__ __forceinline__ float mass_above(const FilteredRow& row, float limit) {
  float mass = 0;
  visit_logits(row.logits, limit, [&](float logit, int) {
    if (logit > limit) mass += row.mass(logit);
  });
  return block_sum(mass);
}

// The best key of the tokens strictly above a logit, 0 when there is none. A tile's best is known; only tiles whose best is not
// above the limit, and better than the best of the others, are looked through.
__device__ __forceinline__ uint64 best_above(const FilteredRow& row, float limit) {
  const auto in = [&](uint64 key) { return key != 0 && row.logits.logits[key_token(key)] > limit; };
  uint64 best = 0;
  for (int tile = threadIdx.x; tile < row.logits.tiles; tile += blockDim.x) {
    const uint64 own = row.stats[tile].best();
    if (own > best && in(own)) best = own;
  }
  best = block_max_key(best);
  uint64 other = best;
  for (int tile = threadIdx.x / WARP; tile < row.logits.tiles; tile += blockDim.x / WARP) {
    const uint64 own = row.stats[tile].best();
    if (!(row.logits.tile_most[tile] > limit) || own <= other || in(own)) continue;
    TileLogits logits = load_tile(row.logits.logits, tile, row.logits.vocab);
#pragma unroll
    for (int i = 0; i < LANE_VECTORS; i++) {
      float4& v = logits.vectors[i];
      v.x = v.x > limit ? v.x : -infinity(), v.y = v.y > limit ? v.y : -infinity();
      v.z = v.z > limit ? v.z : -infinity(), v.w = v.w > limit ? v.w : -infinity();
    }
    const uint64 found = best_of_tile(logits, row.logits.logits, tile, row.logits.vocab, 0, row.logits.tile_most[tile], limit, row.noise);
    other = found > other ? found : other;
  }
  return block_max_key(other);
}

// The drawn token, on every thread. `winner` is the best key of the whole row.
__device__ __forceinline__ int draw_filtered(const FilteredRow& row, uint64 winner) {
  __shared__ Candidates found;
  const SlotParams& slot = row.slot;
  const bool has_top_k = slot.top_k > 0 && slot.top_k < row.logits.vocab;
  // The least logit that is kept, or a lower one.
  float floor = -infinity();
  if (slot.min_p > 0) floor = row.most + logf(slot.min_p) * slot.temperature;
  if (!has_top_k && slot.top_p >= 1 && row.logits.logits[key_token(winner)] >= floor) return key_token(winner);
  if (has_top_k) floor = fmaxf(floor, bound_of_kth(row.logits, slot.top_k));
  int count = row.logits.vocab;
  if (floor > -infinity() || count <= ROW_THREADS) count = find_candidates(found, row.logits, floor);
  if (count > ROW_THREADS && has_top_k) {
    const uint64 low = static_cast<uint64>(ordered(floor)) << 32, high = static_cast<uint64>(ordered(row.most)) << 32;
    const uint64 kth = kth_largest<32>(slot.top_k, low, high | 0xffffffffu, [&](auto f) {
      visit_logits(row.logits, floor, [&](float logit, int token) { f(rank_key(logit, token)); });
    });
    floor = fmaxf(floor, key_value(kth));
    if (slot.top_k <= ROW_THREADS) count = find_candidates(found, row.logits, floor);
  }
  if (count <= ROW_THREADS) return draw_candidate(found, count, row);

  // Many are kept by min-p and top-k. The row's winner is tested: it must be one of them, and the mass above it less than top_p
  // of theirs. Where it is cut, so is all that is not above it, and the best of the rest is tested.
  float total = 0;
  if (!(floor > -infinity())) {
    for (int tile = threadIdx.x; tile < row.logits.tiles; tile += blockDim.x)
      total += row.stats[tile].exp_sum * row.mass(row.stats[tile].most);
    total = block_sum(total);
  }
  float limit = just_below(floor);
#pragma unroll 1
  for (bool first = true;; first = false) {
    const float mass = slot.top_p < 1 && limit > -infinity() ? mass_above(row, limit) : 0;
    if (first && limit > -infinity()) total = mass;
    const bool cut = first ? !(row.logits.logits[key_token(winner)] > limit) : mass >= slot.top_p * total;
    const uint64 next = cut ? best_above(row, limit) : 0;
    if (next != 0) winner = next;
    if (cut ? next == 0 || slot.top_p >= 1 : !first || slot.top_p >= 1) return key_token(winner);
    limit = row.logits.logits[key_token(winner)];
  }
}

// ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────

// The token is the row's, and is appended to the slot's, unless the slot is vacant. One thread calls.
__device__ __forceinline__ void record(int32* out, int row, int token, int64 slot_index, uint32 flags, int32* tokens,
                                       int32* lengths, uint32* counts, int32 vocab, int32 capacity) {
  out[row] = token;
  const int length = lengths[slot_index];
  if (length == 0 || length >= capacity) return;
  tokens[slot_index * capacity + length] = token;
  lengths[slot_index] = length + 1;
  if (flags & PENALTIES) counts[slot_index * vocab + token] += 1;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS, 1024 / ROW_THREADS)
    sample_rows(int32* __restrict__ out, const float* __restrict__ logits, const float* __restrict__ processed,
                const TileStats* __restrict__ stats, const int32* __restrict__ row_slots,
                const int32* __restrict__ positions, const uint32* __restrict__ params, int32* __restrict__ tokens,
                int32* __restrict__ lengths, uint32* __restrict__ counts, int32 vocab, int32 tiles, int32 capacity) {
  extern __shared__ float tile_most[];  // [tiles]
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = blockIdx.x;
  const int64 slot_index = row_slots[row];
  const SlotParams slot = load_slot_params(params, slot_index);
  const int position = positions[row];
  stats += static_cast<int64>(row) * tiles;

  float most = -infinity();
  uint64 winner = 0;
  for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
    const TileStats own = stats[tile];
    tile_most[tile] = own.most;
    most = max_or_nan(most, own.most);
    winner = own.best() > winner ? own.best() : winner;
  }
  const bool has_nan = __syncthreads_or(most != most);
  most = block_max(most);
  if (has_nan || most == -infinity()) {
    if (threadIdx.x == 0) out[row] = has_nan ? DREW_NOT_A_NUMBER : DREW_NOTHING_ALLOWED;
    return;
  }
  winner = block_max_key(winner);
  int token = key_token(winner);
  if (slot.temperature > 0 && (slot.top_p < 1 || slot.min_p > 0 || slot.top_k > 0)) {
    // In shared memory, as the block's threads have few registers each.
    __shared__ FilteredRow filtered;
    if (threadIdx.x == 0) {
      const LogitRow logit_row = {logits_of(row, slot, logits, processed, vocab), tile_most, vocab, tiles};
      filtered = {logit_row, stats, most, slot, noise_of(slot, position)};
    }
    __syncthreads();
    token = draw_filtered(filtered, winner);
  }
  if (threadIdx.x == 0)
    record(out, row, token, slot_index, slot.flags, tokens, lengths, counts, vocab, capacity);
}

// Draws from keys[rows, parts]: each row's best of every part of its tokens, 0 where a part has no logit above −inf,
// NOT_A_NUMBER where it has a NaN. They are 0 afterwards. A warp a row.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    draw_rows(int32* __restrict__ out, uint64* __restrict__ keys, const int32* __restrict__ row_slots,
              int32* __restrict__ tokens, int32* __restrict__ lengths, int32 rows, int32 parts, int32 capacity) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
  if (row >= rows) return;
  uint64 best = 0;
  for (int i = lane; i < parts; i += WARP) {
    uint64* part = keys + static_cast<int64>(row) * parts + i;
    const uint64 key = load_key(part);
    best = key > best ? key : best;
    *part = 0;
  }
  best = warp_max_key(best);
  if (lane != 0) return;
  if (best == 0 || best == NOT_A_NUMBER)
    out[row] = best == 0 ? DREW_NOTHING_ALLOWED : DREW_NOT_A_NUMBER;
  else
    record(out, row, key_token(best), row_slots[row], 0, tokens, lengths, nullptr, 0, capacity);
}
