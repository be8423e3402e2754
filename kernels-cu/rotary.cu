// rope_store: per-head RMSNorm of queries and keys, rotary embedding, then queries in place and keys and values to the
// paged cache.
//
//   qkv            elem_t [tokens, (heads + 2 · kv_heads) · HEAD_DIM]: queries, keys, values
//   keys, values   elem_t [blocks, kv_heads, block_size, HEAD_DIM]
//   cos_sin        float [positions, ROTARY_DIM]: cosines, then sines
//   positions, slot_mapping  int32 [tokens]; a negative slot stores nothing
//   query_norm, key_norm     elem_t [HEAD_DIM] or null
//
// Parallelisation: grid (tokens, pieces of the heads); neighbouring lanes of a warp share a head (head_part.cuh).
// Why this version: one read of the projections and one write of what is kept; the rotated keys are written to the cache
// alone, as attention reads them there.
#include "head_part.cuh"

extern "C" __global__ void rope_store(elem_t* __restrict__ qkv, elem_t* __restrict__ keys, elem_t* __restrict__ values,
                                      const float* __restrict__ cos_sin, const int32* __restrict__ positions,
                                      const int32* __restrict__ slot_mapping, const elem_t* __restrict__ query_norm,
                                      const elem_t* __restrict__ key_norm, int32 heads, int32 kv_heads,
                                      int32 block_size, float eps) {
  const int all_heads = heads + 2 * kv_heads;
  const int head = (blockIdx.y * blockDim.x + threadIdx.x) / LANES;
  const bool is_query = head < heads, is_value = head >= heads + kv_heads;
  const elem_t* norm = is_value || head >= all_heads ? nullptr : is_query ? query_norm : key_norm;
  HeadPart weight = {};
  if (norm != nullptr) weight = load_head(norm);

  GRID_DEPENDENCY_WAIT();
  // Not before: the kernel after this one waits for it and then may start others, which read the cache at once.
  GRID_DEPENDENCY_LAUNCH();
  const int token = blockIdx.x;
  elem_t* at = qkv + (static_cast<int64>(token) * all_heads + head) * HEAD_DIM;
  HeadPart part = {};
  if (head < all_heads) part = load_head<true>(at);
  // Every lane of the warp takes part in the reduction, whatever its head needs.
  if (query_norm != nullptr || key_norm != nullptr) {
    const float scale = rsqrtf(sum_of_squares(part) / HEAD_DIM + eps);
    if (norm != nullptr) scale_head(part, weight, scale);
  }
  if (head >= all_heads) return;
  if (!is_value) rotate(part, load_head_angles(cos_sin + static_cast<int64>(positions[token]) * ROTARY_DIM));
  if (is_query) return store_head(at, part);

  const int slot = slot_mapping[token];
  if (slot < 0) return;
  const int kv_head = head - heads - (is_value ? kv_heads : 0);
  const int64 row = (static_cast<int64>(slot / block_size) * kv_heads + kv_head) * block_size + slot % block_size;
  store_head((is_value ? values : keys) + row * HEAD_DIM, part);
}
