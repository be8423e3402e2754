// Scores of tokens: the one that a slot draws has the greatest. Temperature 0: the logit; else logit / temperature plus Gumbel
// noise that depends on seed, position and token alone, so neither the batch nor the kernel changes what is drawn.
#pragma once
#include "keys.cuh"
#include "slot.cuh"

constexpr float LOG2_E = 1.4426950408889634f;

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

// The same in units of ln 2, from above and in few instructions: as −ln(u) ≥ 1 − u, it is at most −log₂(1 − u). Where the noise
// is great, and so the score, that is nearly all of it.
constexpr float GREATEST_NOISE = 33;
__device__ __forceinline__ float gumbel_bound(uint32 word) {
  // 1 − u or less: 23 bits of it, and no less than half a word.
  const float rest = fmaxf(__uint_as_float(0x3f800000u | (~word >> 9)) - 1, 0x1p-33f);
  float log2;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log2) : "f"(rest));
  return -log2;
}

// The noise of slots at a temperature, for the token that follows `position`.
struct Noise {
  float temperature, scale;  // scale: of logits, to units of ln 2
  uint32 seed_low, seed_high, position;
};

__device__ __forceinline__ Noise noise_of(const SlotParams& slot, int position) {
  return {slot.temperature, LOG2_E / slot.temperature, slot.seed_low, slot.seed_high,
          static_cast<uint32>(position) + 1};
}

// Random words of token 4 · group and the three after it.
__device__ __forceinline__ uint4 noise_words(const Noise& noise, int group) {
  return philox(group, noise.position, noise.seed_low, noise.seed_high);
}
__device__ __forceinline__ uint32 word_of(uint4 words, int token) {
  const int i = token % 4;
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// A score in units of ln 2, from above. SLACK covers the rounding of bounds and scores, whatever their size.
__device__ __forceinline__ float score_bound(const Noise& noise, float logit, uint32 word) {
  return logit * noise.scale + gumbel_bound(word);
}
__device__ __forceinline__ float with_slack(float score) { return score - (0.01f + 1e-6f * fabsf(score)); }

__device__ __forceinline__ float score_of(const Noise& noise, float logit, uint32 word) {
  return logit / noise.temperature + gumbel(word);
}

// The key of a token's score.
__device__ __forceinline__ uint64 score_key(const Noise& noise, float logit, int token) {
  if (noise.temperature == 0) return rank_key(logit, token);
  return rank_key(score_of(noise, logit, word_of(noise_words(noise, token / 4), token)), token);
}
