// Data that blocks of one launch leave for one another: 4 bytes and a tag in one 8-byte store, so that whoever finds the tag has
// the data. No counter and no fence is needed, and nothing is ever cleared, as no two writers of a place use the same tag.
#pragma once
#include "types.cuh"

// Of about half a microsecond each. A tag that does not come is then a trap, not a hang.
constexpr int MAX_POLLS = 1 << 25;

__device__ __forceinline__ uint64 load_tagged(const uint64* p) {
  uint64 v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
// p must be 16-byte aligned.
__device__ __forceinline__ ulonglong2 load_tagged2(const uint64* p) {
  ulonglong2 v;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(v.x), "=l"(v.y) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void store_tagged(uint64* p, uint32 data, uint32 tag) {
  const uint64 v = static_cast<uint64>(tag) << 32 | data;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ uint32 tag_of(uint64 v) { return static_cast<uint32>(v >> 32); }
__device__ __forceinline__ uint32 data_of(uint64 v) { return static_cast<uint32>(v); }
// 0 where both have the tag.
__device__ __forceinline__ uint32 differ(ulonglong2 v, uint32 tag) { return (tag_of(v.x) ^ tag) | (tag_of(v.y) ^ tag); }

// The data at p once it has the tag.
__device__ __forceinline__ uint32 await_tagged(const uint64* p, uint32 tag) {
  for (int polls = 0; polls < MAX_POLLS; polls++) {
    const uint64 v = load_tagged(p);
    if (tag_of(v) == tag) return data_of(v);
  }
  __trap();
  return 0;
}

// x[s] = the 8 elements, in pairs, at source + s · PITCH of an active lane, else 0, once all of them have the tag. A warp's
// lanes call it together, a quad for a token. AT_ONCE: steps that are requested together, for which there are registers.
template <int PITCH, int AT_ONCE, int STEPS>
__device__ __forceinline__ void await_steps(uint4 (&x)[STEPS], const uint64* source, bool active, uint32 tag) {
  // One request a warp while nothing is there: more would hold up those that still work.
  const bool asks = active && threadIdx.x % WARP < 4;
  for (int polls = 0;; polls++) {
    const bool missing = asks && tag_of(load_tagged(source + (STEPS - 1) * PITCH)) != tag;
    if (!__any_sync(FULL_MASK, missing)) break;
    if (polls == MAX_POLLS) __trap();
  }
#pragma unroll
  for (int first = 0; first < STEPS; first += AT_ONCE)
    for (int polls = 0;; polls++) {
      uint32 missing = 0;
#pragma unroll
      for (int s = first; s < first + AT_ONCE; s++) {
        if (s >= STEPS) continue;
        x[s] = make_uint4(0, 0, 0, 0);
        if (active) {
          const ulonglong2 low = load_tagged2(source + s * PITCH), high = load_tagged2(source + s * PITCH + 2);
          missing |= differ(low, tag) | differ(high, tag);
          x[s] = make_uint4(data_of(low.x), data_of(low.y), data_of(high.x), data_of(high.y));
        }
      }
      if (!__any_sync(FULL_MASK, missing != 0)) break;
      if (polls == MAX_POLLS) __trap();
    }
}
