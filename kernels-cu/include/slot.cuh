// A slot's sampling parameters, as the host packs them (`SlotWord` and `SlotFlag` in backend.ts).
#pragma once
#include "types.cuh"

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
static_assert(sizeof(SlotParams) == 16 * 4, "SlotParams must have SLOT_WORDS words");

enum SlotFlag : uint32 { PENALTIES = 1, EDITS = 2, ALLOWED = 4, BAD_WORDS = 8 };

// Bit of a word of counts [slots, vocab]: the token is in the prompt. The other bits count how often it was generated.
constexpr uint32 IN_PROMPT = 0x80000000u;
