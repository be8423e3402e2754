// A slot's sampling parameters, as the host packs them (`SlotWord` and `SlotFlag` in backend.ts).
#pragma once
#include "types.cuh"

#if !defined(SLOT_WORDS) || !defined(COUNT_IN_PROMPT)
#error "SLOT_WORDS, SLOT_WORD_…, SLOT_FLAG_… and COUNT_IN_PROMPT come from src/backend/cuda/ops/slot-layout.ts"
#endif

// One slot's record.
struct SlotParams {
  float temperature, top_p, min_p;
  int32 top_k;
  float repetition_penalty, presence_penalty, frequency_penalty;
  uint32 flags, seed_low, seed_high;
  int32 edit_count;
};

// From records uint32 [slots, SLOT_WORDS]; fields that nobody uses are not read.
__device__ __forceinline__ SlotParams load_slot_params(const uint32* records, int slot) {
  const uint32* words = records + static_cast<int64>(slot) * SLOT_WORDS;
  SlotParams params;
  params.temperature = __uint_as_float(words[SLOT_WORD_TEMPERATURE]);
  params.top_p = __uint_as_float(words[SLOT_WORD_TOP_P]);
  params.min_p = __uint_as_float(words[SLOT_WORD_MIN_P]);
  params.top_k = words[SLOT_WORD_TOP_K];
  params.repetition_penalty = __uint_as_float(words[SLOT_WORD_REPETITION_PENALTY]);
  params.presence_penalty = __uint_as_float(words[SLOT_WORD_PRESENCE_PENALTY]);
  params.frequency_penalty = __uint_as_float(words[SLOT_WORD_FREQUENCY_PENALTY]);
  params.flags = words[SLOT_WORD_FLAGS];
  params.seed_low = words[SLOT_WORD_SEED_LOW];
  params.seed_high = words[SLOT_WORD_SEED_HIGH];
  params.edit_count = words[SLOT_WORD_EDIT_COUNT];
  return params;
}

enum SlotFlag : uint32 {
  PENALTIES = SLOT_FLAG_PENALTIES,
  EDITS = SLOT_FLAG_EDITS,
  ALLOWED = SLOT_FLAG_ALLOWED,
  BAD_WORDS = SLOT_FLAG_BAD_WORDS
};
static_assert((PENALTIES ^ EDITS ^ ALLOWED ^ BAD_WORDS) == (PENALTIES + EDITS + ALLOWED + BAD_WORDS),
              "slot flags must be bits of their own");

// Bit of a word of counts [slots, vocab]: the token is in the prompt. The other bits count how often it was generated.
constexpr uint32 IN_PROMPT = COUNT_IN_PROMPT;
static_assert(IN_PROMPT == 1u << 31, "COUNT_IN_PROMPT must be the highest bit, above the counts");
