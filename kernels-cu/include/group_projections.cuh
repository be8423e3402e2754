// The projections of a KV head's group for one token, in shared memory: queries as attention multiplies them, and the token's key
// and value as the cache has them.
#pragma once
#include "attention.cuh"
#include "head_part.cuh"

// Heads of a group in its projections.
constexpr int KEY = GROUP_SIZE, VALUE = GROUP_SIZE + 1, PROJECTED = GROUP_SIZE + 2;

struct GroupProjections {
  // Padded so that rows start on different banks.
  alignas(VECTOR_BYTES) elem_t heads[PROJECTED][HEAD_DIM + VEC];
#if defined(CACHE_FLOAT8)
  alignas(VECTOR_BYTES) cache_t cached[2][HEAD_DIM];

  __device__ __forceinline__ const cache_t* key() const { return cached[0]; }
  __device__ __forceinline__ const cache_t* value() const { return cached[1]; }
  // Called by the lanes of a head, normalised and rotated.
  __device__ __forceinline__ void keep(int head, const HeadPart& part, float key_scale, float value_scale) {
    if (head < GROUP_SIZE)
      store_query(heads[head], part);
    else
      store_cached(cached[head - GROUP_SIZE], part, head == KEY ? key_scale : value_scale);
  }
#else
  __device__ __forceinline__ const cache_t* key() const { return heads[KEY]; }
  __device__ __forceinline__ const cache_t* value() const { return heads[VALUE]; }
  __device__ __forceinline__ void keep(int head, const HeadPart& part, float, float) { store_head(heads[head], part); }
#endif
};
