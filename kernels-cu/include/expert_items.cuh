// What the kernels of a mixture of experts agree on: a pair is a token's share in one of its k experts, pair t · k + j the one with
// token t's j-th greatest logit; pairs sorted by expert are cut into items, which a CTA multiplies by its expert's weights.
#pragma once
#include "types.cuh"

struct Item {
  int32 expert;
  // In the list of sorted pairs.
  int32 first, count;
  int32 unused;
};
static_assert(sizeof(Item) == sizeof(uint4), "an item is loaded at once");

// Item `index`; one without pairs past the last. `items` begins with one whose count is the number of those that follow.
__device__ __forceinline__ Item load_item(const Item* items, int index) {
  const uint4 head = load16_coherent(items);
  if (index >= static_cast<int>(head.z)) return {0, 0, 0, 0};
  const uint4 words = load16_coherent(items + 1 + index);
  return {static_cast<int32>(words.x), static_cast<int32>(words.y), static_cast<int32>(words.z), 0};
}
