// process_logits: penalties, edits, masks and bad words.
//
//   logits, out   float [rows, vocab]               row_slots, positions  int32 [rows]
//   params        uint32 [slots, SLOT_WORDS]        tokens    int32 [slots, capacity]
//   edits         Edit [slots, MAX_LOGIT_EDITS]     bad_words uint32 [slots, MAX_BAD_WORD_TOKENS]
//   allowed       uint32 [slots, ceil(vocab / 32)]  counts    uint32 [slots, vocab]
//
// Parallelisation: grid (blocks a row, rows), a block takes CHUNK logits at a time through shared memory. Rows whose slot asks
// for nothing end at once: among many of them, a row with work costs its own logits alone.
#include "slot.cuh"

#if !defined(LOGITS_CHUNK)
#error "LOGITS_CHUNK comes from src/backend/cuda/ops/process-logits.ts"
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
