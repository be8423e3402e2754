// process_logits: penalties, edits, masks and bad words.  sample_tiles, sample_rows: draw one token a row.
//
//   logits, out   float [rows, vocab]               row_slots, positions  int32 [rows]
//   processed     float [rows, vocab], of which only rows of slots with flags are read; may be logits
//   params        uint32 [slots, SLOT_WORDS]        tokens    int32 [slots, capacity], of which lengths int32 [slots]
//   edits         Edit [slots, MAX_LOGIT_EDITS]     bad_words uint32 [slots, MAX_BAD_WORD_TOKENS]
//   allowed       uint32 [slots, ceil(vocab / 32)]  counts    uint32 [slots, vocab]
//   tiles         TileStats [rows, tiles]
//
// The draw is the argmax of logit / temperature + Gumbel noise over the tokens that min-p, top-k and top-p keep. The
// noise depends on seed, position and token alone, so neither the batch nor the launch shape changes a row's token.
//
// Parallelisation: process_logits: grid (blocks a row, rows), a block takes CHUNK logits at a time through shared memory.
// sample_tiles: a warp a tile, so that one row fills many SMs and many rows need no block-wide barrier. sample_rows: a
// block a row.
// Why this version: greedy and temperature rows end with one read of the logits and a reduction of a few hundred tiles.
// The three filters keep the most likely tokens down to some logit, so a token passes if its own logit does: the winner
// of the whole row is tested first, and only when it fails is the winner among strictly more likely tokens sought. A test
// needs the mass of the more likely tokens, which the tile maxima confine to few tiles. Nothing is sorted.
#include "logits.cuh"
#include "slot.cuh"

// ── process_logits ──────────────────────────────────────────────────────────────────────────────────────────────────

#if !defined(LOGITS_CHUNK) || !defined(TILE_STATS_BYTES) || !defined(DREW_NOT_A_NUMBER) || !defined(DREW_NOTHING_ALLOWED)
#error "LOGITS_CHUNK, TILE_STATS_BYTES and DREW_… come from src/backend/cuda/ops/sampling.ts"
#endif
#if !defined(MAX_LOGIT_EDITS) || !defined(LOGIT_EDIT_WORDS) || !defined(MAX_BAD_WORD_TOKENS)
#error "MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS and MAX_BAD_WORD_TOKENS come from src/backend/cuda/ops/slot-layout.ts"
#endif

constexpr int CHUNK = LOGITS_CHUNK;

struct Edit {
  int32 token;
  float value;
  uint32 until;
};
static_assert(sizeof(Edit) == LOGIT_EDIT_WORDS * 4, "LOGIT_EDIT_WORDS must be those of an Edit");

struct BannedTokens {
  int32 tokens[MAX_BAD_WORD_TOKENS / 2];
  int32 count;
};

// Bad words [length, tokens…]…, 0: a sequence bans its last token when the others are the last ones of the history, which
// ends at `position`. All threads call; `banned` is ready on return, with −1 for sequences that do not match.
__device__ __forceinline__ void find_banned(BannedTokens& banned, const uint32* bad_words, const int32* history,
                                            int position) {
  __shared__ uint32 words[MAX_BAD_WORD_TOKENS];
  for (int i = threadIdx.x; i < MAX_BAD_WORD_TOKENS; i += blockDim.x) words[i] = bad_words[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    int count = 0;
    for (int start = 0; start < MAX_BAD_WORD_TOKENS && words[start] != 0; start += words[start] + 1)
      banned.tokens[count++] = start;
    banned.count = count;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < banned.count; i += blockDim.x) {
    const int start = banned.tokens[i], prefix = static_cast<int>(words[start]) - 1;
    const int history_start = position + 1 - prefix;
    bool matches = history_start >= 0;
    for (int j = 0; matches && j < prefix; j++)
      matches = words[start + 1 + j] == static_cast<uint32>(history[history_start + j]);
    banned.tokens[i] = matches ? static_cast<int32>(words[start + 1 + prefix]) : -1;
  }
  __syncthreads();
}

__device__ __forceinline__ float penalise(float logit, uint32 seen, const SlotParams& slot) {
  if (seen == 0) return logit;
  logit = logit > 0 ? logit / slot.repetition_penalty : logit * slot.repetition_penalty;
  const uint32 generated = seen & ~IN_PROMPT;
  return generated == 0 ? logit : logit - (slot.frequency_penalty * generated + slot.presence_penalty);
}

// `out` may be `logits`. Rows without work are not written.
extern "C" __global__ void process_logits(float* out, const float* logits, const int32* __restrict__ row_slots,
                                          const int32* __restrict__ positions, const uint32* __restrict__ params,
                                          const int32* __restrict__ tokens, const Edit* __restrict__ edits,
                                          const uint32* __restrict__ bad_words, const uint32* __restrict__ allowed,
                                          const uint32* __restrict__ counts, int32 vocab, int32 capacity) {
  __shared__ float chunk[CHUNK];
  __shared__ BannedTokens banned;
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = blockIdx.y;
  const int64 slot_index = row_slots[row];
  const SlotParams slot = load_slot_params(params, slot_index);
  const int position = positions[row];
  logits += static_cast<int64>(row) * vocab;
  out += static_cast<int64>(row) * vocab;
  if (slot.flags == 0) return;

  if (slot.flags & BAD_WORDS)
    find_banned(banned, bad_words + slot_index * MAX_BAD_WORD_TOKENS, tokens + slot_index * capacity, position);
  const uint32* row_allowed = allowed + slot_index * ceil_div(vocab, 32);
  const uint32* row_counts = counts + slot_index * vocab;
  const Edit* row_edits = edits + slot_index * MAX_LOGIT_EDITS;

  for (int start = blockIdx.x * CHUNK; start < vocab; start += gridDim.x * CHUNK) {
    const int size = min(CHUNK, vocab - start);
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
      const int token = start + i;
      const bool keep = !(slot.flags & ALLOWED) || (row_allowed[token / 32] >> (token % 32) & 1);
      chunk[i] = keep ? logits[token] : -infinity();
    }
    __syncthreads();
    if (slot.flags & BAD_WORDS) {
      for (int i = threadIdx.x; i < banned.count; i += blockDim.x) {
        const int at = banned.tokens[i] - start;
        if (0 <= at && at < size) chunk[at] = -infinity();
      }
      __syncthreads();
    }
    if (slot.flags & EDITS) {
      // A token has at most one finite edit, so the order of additions does not matter.
      for (int i = threadIdx.x; i < slot.edit_count; i += blockDim.x) {
        const Edit edit = row_edits[i];
        const int at = edit.token - start;
        if (0 <= at && at < size && static_cast<uint32>(position + 1) < edit.until) atomicAdd(&chunk[at], edit.value);
      }
      __syncthreads();
    }
    for (int i = threadIdx.x; i < size; i += blockDim.x)
      out[start + i] = slot.flags & PENALTIES ? penalise(chunk[i], row_counts[start + i], slot) : chunk[i];
    __syncthreads();
  }
}

// ── Gumbel noise ────────────────────────────────────────────────────────────────────────────────────────────────────

// Philox4x32-10 (Salmon et al. 2011) of the counter (group, position, 0, 0): random words of tokens 4 · group … + 3.
__device__ __forceinline__ uint4 philox(uint32 group, uint32 position, uint32 key0, uint32 key1) {
  uint4 c = make_uint4(group, position, 0, 0);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64 a = static_cast<uint64>(0xd2511f53u) * c.x;
    const uint64 b = static_cast<uint64>(0xcd9e8d57u) * c.z;
    c = make_uint4(static_cast<uint32>(b >> 32) ^ c.y ^ key0, static_cast<uint32>(b),
                   static_cast<uint32>(a >> 32) ^ c.w ^ key1, static_cast<uint32>(a));
    key0 += 0x9e3779b9u, key1 += 0xbb67ae85u;
  }
  return c;
}

// −ln(−ln(u)) of u = (word + 0.5) / 2³², to float precision over the whole range: near 1, u itself would round to 1.
__device__ __forceinline__ float gumbel(uint32 word) {
  const float scale = 0x1p-32f;
  const float exponential = word < 0x80000000u ? -logf((__uint2float_rn(word) + 0.5f) * scale)
                                               : -log1pf(-(__uint2float_rn(~word) + 0.5f) * scale);
  return -logf(exponential);
}

// The same plus a constant, in units of ln 2, to within APPROXIMATE_ERROR unless `is_extreme(word)`.
__device__ __forceinline__ float approximate_gumbel(uint32 word) {
  const float u = __uint_as_float(0x3f800000u | word >> 9) - (1 - 0x1p-24f);
  return -__log2f(-__log2f(u));
}
constexpr float APPROXIMATE_ERROR = 0.02f;
__device__ __forceinline__ bool is_extreme(uint32 word) { return word + 0x40000u < 0x80000u; }

// The quantity that the draw maximises.
__device__ __forceinline__ uint64 score_key(const SlotParams& slot, int position, float logit, int token) {
  if (slot.temperature == 0) return rank_key(logit, token);
  const uint4 words = philox(token / 4, position + 1, slot.seed_low, slot.seed_high);
  const int lane = token % 4;
  const uint32 word = lane == 0 ? words.x : lane == 1 ? words.y : lane == 2 ? words.z : words.w;
  return rank_key(logit / slot.temperature + gumbel(word), token);
}

// ── drawing a token ─────────────────────────────────────────────────────────────────────────────────────────────────

struct __align__(16) TileStats {
  float most;     // maximum; NaN when there is a NaN
  float exp_sum;  // Σ exp((logit − most) / temperature), where top-p needs it
  uint32 best_score;
  uint32 best_token;
};
static_assert(sizeof(TileStats) == TILE_STATS_BYTES, "TILE_STATS_BYTES must be those of a TileStats");
static_assert(LANE_VECTORS * 4 <= 32, "LOGIT_TILE must give a lane at most 32 logits, a bit of one word each");

// The best key of the tile, 0 when it has no logit above −inf. Scores are approximated first; then those within the error
// of the best are computed exactly.
__device__ __forceinline__ uint64 best_of_tile(const TileLogits& logits, const float* row, int tile, int vocab,
                                               float most, const SlotParams& slot, int position) {
  if (most == -infinity()) return 0;
  float approximate[LANE_VECTORS * 4];
  uint32 contenders = 0;  // bit i: this lane's i-th logit
  float threshold = most;
  if (slot.temperature == 0) {
#pragma unroll
    for (int i = 0; i < LANE_VECTORS; i++) {
      const float4 v = logits.vectors[i];
      approximate[4 * i] = v.x, approximate[4 * i + 1] = v.y, approximate[4 * i + 2] = v.z, approximate[4 * i + 3] = v.w;
    }
  } else {
    const float scale = 1.4426950408889634f / slot.temperature;
    float best = -infinity();
#pragma unroll
    for (int i = 0; i < LANE_VECTORS; i++) {
      const float4 v = logits.vectors[i];
      const uint4 words = philox(lane_token(tile, i) / 4, position + 1, slot.seed_low, slot.seed_high);
      const float logit[4] = {v.x, v.y, v.z, v.w};
      const uint32 word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        approximate[4 * i + j] = logit[j] * scale + approximate_gumbel(word[j]);
        best = fmaxf(best, approximate[4 * i + j]);
        if (is_extreme(word[j])) contenders |= 1u << (4 * i + j);
      }
    }
    threshold = warp_max(best) - 2 * APPROXIMATE_ERROR;
  }
#pragma unroll
  for (int i = 0; i < LANE_VECTORS * 4; i++)
    if (approximate[i] >= threshold) contenders |= 1u << i;

  uint64 best = 0;
  for (; contenders != 0; contenders &= contenders - 1) {
    const int i = __ffs(contenders) - 1;
    const int token = lane_token(tile, i / 4) + i % 4;
    if (token >= vocab) continue;
    const uint64 key = score_key(slot, position, row[token], token);
    best = key > best ? key : best;
  }
  return warp_max_key(best);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    sample_tiles(TileStats* __restrict__ stats, const float* __restrict__ logits, const float* __restrict__ processed,
                 const int32* __restrict__ row_slots, const int32* __restrict__ positions,
                 const uint32* __restrict__ params, int32 vocab, int32 tiles) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = blockIdx.y;
  const int tile = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
  if (tile >= tiles) return;
  const SlotParams slot = load_slot_params(params, row_slots[row]);
  const float* row_logits = (slot.flags == 0 ? logits : processed) + static_cast<int64>(row) * vocab;
  const TileLogits tile_logits = load_tile(row_logits, tile, vocab);
  const int position = positions[row];

  const float most = tile_maximum(tile_logits);
  const bool needs_mass = slot.temperature > 0 && slot.top_p < 1;
  const float exp_sum = needs_mass ? tile_exp_sum(tile_logits, most, 1 / slot.temperature) : 0;
  const uint64 best = best_of_tile(tile_logits, row_logits, tile, vocab, most, slot, position);
  if (threadIdx.x % WARP == 0)
    stats[static_cast<int64>(row) * tiles + tile] = {most, exp_sum, static_cast<uint32>(best >> 32),
                                                     static_cast<uint32>(best)};
}

// Of the tokens strictly above a logit: their mass relative to the row's maximum, and the best score.
struct Above {
  float mass;
  uint64 best;
};

__device__ __forceinline__ Above tokens_above(const LogitRow& row, float logit, float most, const SlotParams& slot,
                                              int position) {
  float mass = 0;
  uint64 best = 0;
  const float scale = 1 / slot.temperature;
  visit_tiles(row, logit, [&](float other, int token) {
    if (other <= logit) return;
    mass += __expf((other - most) * scale);
    const uint64 key = score_key(slot, position, other, token);
    best = key > best ? key : best;
  });
  return {block_sum(mass), block_max_key(best)};
}

// The least logit that min-p and top-k keep.
__device__ __forceinline__ float filter_floor(const LogitRow& row, float most, const SlotParams& slot) {
  float floor = -infinity();
  if (slot.min_p > 0) floor = most + logf(slot.min_p) * slot.temperature;
  if (slot.top_k <= 0 || slot.top_k >= row.vocab) return floor;
  const float least = fmaxf(floor, bound_of_kth(row, slot.top_k));
  const uint64 low = static_cast<uint64>(ordered(least)) << 32, high = static_cast<uint64>(ordered(most)) << 32;
  const uint64 kth = kth_largest<32>(slot.top_k, low, high | 0xffffffffu, [&](auto f) {
    visit_tiles(row, least, [&](float logit, int token) { f(rank_key(logit, token)); });
  });
  return fmaxf(least, key_value(kth));
}

// The drawn token, on every thread. `winner` is the best key of the whole row.
__device__ __forceinline__ int draw_filtered(const LogitRow& row, const TileStats* stats, uint64 winner, float most,
                                             const SlotParams& slot, int position) {
  const float floor = filter_floor(row, most, slot);
  float total = 0;
  if (floor > -infinity()) {
    // The survivors, when they are needed: for their mass, or because the row's winner is not one of them.
    if (slot.top_p < 1 || row.logits[key_token(winner)] < floor) {
      const Above kept = tokens_above(row, just_below(floor), most, slot, position);
      total = kept.mass;
      winner = kept.best;
    }
  } else if (slot.top_p < 1) {
    for (int tile = threadIdx.x; tile < row.tiles; tile += blockDim.x)
      total += stats[tile].exp_sum * __expf((stats[tile].most - most) / slot.temperature);
    total = block_sum(total);
  }
  if (slot.top_p >= 1) return key_token(winner);
  for (;;) {
    const Above above = tokens_above(row, row.logits[key_token(winner)], most, slot, position);
    if (above.best == 0 || above.mass < slot.top_p * total) return key_token(winner);
    winner = above.best;
  }
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
    const uint64 key = static_cast<uint64>(own.best_score) << 32 | own.best_token;
    winner = key > winner ? key : winner;
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
    const float* row_logits = (slot.flags == 0 ? logits : processed) + static_cast<int64>(row) * vocab;
    const LogitRow logit_row = {row_logits, tile_most, vocab, tiles};
    token = draw_filtered(logit_row, stats, winner, most, slot, position);
  }
  if (threadIdx.x != 0) return;
  out[row] = token;
  // The token is appended to the slot's, unless the slot is vacant.
  const int length = lengths[slot_index];
  if (length == 0 || length >= capacity) return;
  tokens[slot_index * capacity + length] = token;
  lengths[slot_index] = length + 1;
  if (slot.flags & PENALTIES) counts[slot_index * vocab + token] += 1;
}
