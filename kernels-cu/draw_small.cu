// The LM head of at most 8 tokens with the draw in its epilogue: keys[T, CTAs] of the best token of each CTA's part of the
// vocabulary. draw_rows (sampling.cu) takes the best of them. Logits are never written.
//
//   x       elem_t [T, K]            gamma      elem_t [K], the norm's weight, with NORM
//   weight  elem_t [V, K]            row_slots  int32 [T], positions  int32 [T], params  uint32 [slots, SLOT_WORDS]
//   V are all tokens of the vocabulary or those of one rank, from first_token on
//   keys    uint64 [T, CTAs]: 0 where no logit is above −inf, NOT_A_NUMBER where one is a NaN
//
// Parallelisation: that of linear_small.cu, and its sums to the bit: a logit's thread scores it and keeps the best key it has
// seen. Scores are bounded first, so that the logarithms of the noise are seldom computed.
// Why this version: at these batch sizes the head is bound by reading its weights, and the warps that multiply have time for
// the noise; two kernels and the logits' way through memory are saved.
#include "gumbel.cuh"
#include "small_product.cuh"
#include "soft_cap.cuh"

#if !defined(SOFT_CAP)
#error "SOFT_CAP comes from src/backend/cuda/ops/draw-small.ts"
#endif
static_assert(!GATED, "logits are not gated");

struct DrawBest {
  uint64* keys;
  const int32 *row_slots, *positions;
  const uint32* params;
  int first_token;
  float cap;  // of logits, with SOFT_CAP
  Noise noise;
  float leader;  // the best score, in units of ln 2
  uint64 best;

  __device__ __forceinline__ void start(int token, int tokens) {
    best = 0, leader = -infinity();
    if (token < tokens) noise = noise_of(load_slot_params(params, row_slots[token]), positions[token]);
  }
  __device__ __forceinline__ void begin(int, int) {}
  __device__ __forceinline__ void finish(int, int output, float logit, float) {
    const int token = first_token + output;
    if (SOFT_CAP) logit = soft_cap(logit, cap);
    if (logit != logit) best = NOT_A_NUMBER;
    if (!(logit > -infinity())) return;
    uint64 key;
    if (noise.temperature == 0) {
      key = rank_key(logit, token);
    } else {
      const uint32 word = word_of(noise_words(noise, token / 4), token);
      if (score_bound(noise, logit, word) < leader) return;
      const float score = score_of(noise, logit, word);
      leader = fmaxf(leader, with_slack(score * LOG2_E));
      key = rank_key(score, token);
    }
    best = key > best ? key : best;
  }
};

// See small_product for the grid.
extern "C" __global__ void __launch_bounds__(CONSUMERS + WARP, MIN_CTAS)
    draw_small(uint64* __restrict__ keys, const elem_t* x, const elem_t* __restrict__ weight,
               const elem_t* __restrict__ gamma, const int32* row_slots, const int32* positions, const uint32* params,
               int tokens, int vocab, int first_token, int tiles, int trigger_early, float eps, float cap) {
  DrawBest epilogue = {keys, row_slots, positions, params, first_token, cap};
  small_product(x, weight, gamma, tokens, vocab, tiles, trigger_early, eps, epilogue);
  if (threadIdx.x >= CONSUMERS) return;
  // The OUT_ROWS threads of a token are neighbours in one warp.
  uint64 best = epilogue.best;
#pragma unroll
  for (int offset = OUT_ROWS / 2; offset > 0; offset /= 2) {
    const uint64 other = __shfl_xor_sync(FULL_MASK, best, offset);
    best = other > best ? other : best;
  }
  const int token = threadIdx.x / OUT_ROWS;
  if (threadIdx.x % OUT_ROWS == 0 && token < tokens) keys[static_cast<int64>(token) * gridDim.x + blockIdx.x] = best;
}
