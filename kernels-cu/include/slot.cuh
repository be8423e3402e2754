// A slot's sampling parameters, as the host packs them (`SlotWord` and `SlotFlag` in backend.ts).
#pragma once
#include "types.cuh"

#if !defined(SLOT_WORDS) || !defined(COUNT_IN_PROMPT) || !defined(MAX_LOGIT_EDITS) || !defined(MAX_BAD_WORD_TOKENS)
#error "SLOT_…, COUNT_IN_PROMPT and the sizes of a slot's tables come from src/backend/cuda/ops/slot-layout.ts"
#endif

struct SlotParams {
  float temperature;
  float top_p;
  float min_p;
  int32 top_k;
  float repetition_penalty;
  float presence_penalty;
  float frequency_penalty;
  uint32 flags;
  uint32 seed_low;
  uint32 seed_high;
  int32 edit_count;
  uint32 unused[5];
};
static_assert(sizeof(SlotParams) == SLOT_WORDS * 4, "SlotParams must have SLOT_WORDS words");

#define LIES_AT(field, word) \
  static_assert(__builtin_offsetof(SlotParams, field) == (word) * 4, #field " must lie where SlotWord says")
LIES_AT(temperature, SLOT_WORD_TEMPERATURE);
LIES_AT(top_p, SLOT_WORD_TOP_P);
LIES_AT(min_p, SLOT_WORD_MIN_P);
LIES_AT(top_k, SLOT_WORD_TOP_K);
LIES_AT(repetition_penalty, SLOT_WORD_REPETITION_PENALTY);
LIES_AT(presence_penalty, SLOT_WORD_PRESENCE_PENALTY);
LIES_AT(frequency_penalty, SLOT_WORD_FREQUENCY_PENALTY);
LIES_AT(flags, SLOT_WORD_FLAGS);
LIES_AT(seed_low, SLOT_WORD_SEED_LOW);
LIES_AT(seed_high, SLOT_WORD_SEED_HIGH);
LIES_AT(edit_count, SLOT_WORD_EDIT_COUNT);
#undef LIES_AT

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
