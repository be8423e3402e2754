// rope_store: per-head RMSNorm of queries, keys and values, rotary embedding, then queries in place and keys and values to the
// paged cache. With kv_heads 0 there are queries alone.
//
//   qkv            elem_t [tokens, (heads + 2 · kv_heads) · HEAD_DIM]: queries, keys, values
//   keys, values   cache_t [blocks, kv_heads, block_size, HEAD_DIM]
//   cos_sin        float [positions, ROTARY_DIM]: cosines, then sines
//   positions, slot_mapping  int32 [tokens]; a negative slot stores nothing
//   query_norm, key_norm     elem_t [HEAD_DIM] or null
//   query_scales             float [positions], with QUERY_SCALES
//
// Parallelisation: LANES neighbouring lanes of a warp share a head (head_part.cuh). They take HEADS heads of a token, which
// lie as far apart as the token has such groups of heads, so that a warp accesses heads that are neighbours. The grid
// has a thread for each lane of each group of each token.
// Why this version: one read of the projections and one write of what is kept; the rotated keys are written to the cache
// alone, as attention reads them there. Bound by memory, and so by how much is under way: a thread asks for its heads before it
// needs any, for its token's position, slot and angles beside them and not after them, and uses the angles for all of its heads.
//
// Measured on an H100 (bfloat16, 16 query and 8 KV heads of 128, norms), TB/s of 8,192 / 16,384 tokens: 2.46 / 2.51 with a head a
// thread and angles asked for after the norm, 2.50 / 2.53 beside it, 2.72 / 2.78 with four heads a thread.
#include "head_part.cuh"

#if !defined(ROPE_THREADS) || !defined(ROPE_HEADS)
#error "ROPE_THREADS and ROPE_HEADS come from src/backend/cuda/ops/rotary.ts"
#endif
static_assert(ROPE_THREADS % WARP == 0, "a block must be whole warps: lanes reduce together");

constexpr int HEADS = ROPE_HEADS;

// Neighbouring elements as they are in memory.
template <int N>
struct RawElems {
  elem_t elems[N];
  __device__ __forceinline__ void load(const elem_t* p) {
#pragma unroll
    for (int i = 0; i < N; i++) elems[i] = load_coherent(p + i);
  }
  __device__ __forceinline__ void store(elem_t* p) const {
#pragma unroll
    for (int i = 0; i < N; i++) p[i] = elems[i];
  }
  __device__ __forceinline__ void unpack_to(float (&x)[N]) const {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = to_float(elems[i]);
  }
};
template <>
struct RawElems<VEC> {
  uint4 vector;
  __device__ __forceinline__ void load(const elem_t* p) { vector = load16_coherent(p); }
  __device__ __forceinline__ void store(elem_t* p) const { store16(p, vector); }
  __device__ __forceinline__ void unpack_to(float (&x)[VEC]) const { unpack(vector, x); }
};

// One lane's share of a head as it is in memory: half the registers of a HeadPart.
struct RawHeadPart {
  RawElems<PAIRS> first[PIECES_PER_LANE];
  RawElems<PAIRS> second[PIECES_PER_LANE];

  __device__ __forceinline__ void load(const elem_t* head) {
#pragma unroll
    for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
      const int pair = lane_pair(piece);
      if (pair >= HEAD_DIM / 2) continue;
      first[piece].load(head + first_dim(pair));
      second[piece].load(head + second_dim(pair));
    }
  }
  __device__ __forceinline__ void store(elem_t* head) const {
#pragma unroll
    for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
      const int pair = lane_pair(piece);
      if (pair >= HEAD_DIM / 2) continue;
      first[piece].store(head + first_dim(pair));
      second[piece].store(head + second_dim(pair));
    }
  }
  __device__ __forceinline__ HeadPart part() const {
    HeadPart part;
#pragma unroll
    for (int piece = 0; piece < PIECES_PER_LANE; piece++)
      first[piece].unpack_to(part.first[piece]), second[piece].unpack_to(part.second[piece]);
    return part;
  }
};

// With 1 block named as the least, the compiler takes the registers that loads under way need.
extern "C" __global__ void __launch_bounds__(ROPE_THREADS, 1)
    rope_store(elem_t* __restrict__ qkv, cache_t* __restrict__ keys, cache_t* __restrict__ values,
               const float* __restrict__ cos_sin, const int32* __restrict__ positions,
               const int32* __restrict__ slot_mapping, const elem_t* __restrict__ query_norm,
               const elem_t* __restrict__ key_norm, int32 tokens, int32 heads, int32 kv_heads, int32 block_size,
               float eps, float key_scale, float value_scale, const float* __restrict__ query_scales) {
  const int all_heads = heads + 2 * kv_heads, groups = ceil_div(all_heads, HEADS);
  const int unit = blockIdx.x * (ROPE_THREADS / LANES) + threadIdx.x / LANES;
  const int token = unit / groups, group = unit - token * groups;
  const bool exists = token < tokens;

  GRID_DEPENDENCY_WAIT();
  // Not before: the kernel after this one waits for it and then may start others, which read the cache at once.
  GRID_DEPENDENCY_LAUNCH();
  const int position = exists ? load_coherent(positions + token) : 0;
  const int slot = exists ? load_coherent(slot_mapping + token) : -1;
  elem_t* row = qkv + static_cast<int64>(token) * all_heads * HEAD_DIM;
  RawHeadPart raw[HEADS] = {};
#pragma unroll
  for (int i = 0; i < HEADS; i++) {
    const int head = group + i * groups;
    if (exists && head < all_heads) raw[i].load(row + head * HEAD_DIM);
  }
  const HeadAngles angles = load_head_angles(cos_sin + static_cast<int64>(position) * ROTARY_DIM);
  const float query_scale = SCALES_QUERIES ? __ldg(query_scales + position) : 1;
  // Where the token's keys and values of the first KV head go.
  const int64 stored = (static_cast<int64>(slot / block_size) * kv_heads * block_size + slot % block_size) * HEAD_DIM;

#pragma unroll
  for (int i = 0; i < HEADS; i++) {
    const int head = group + i * groups;
    const bool is_query = head < heads, is_value = head >= heads + kv_heads;
    const elem_t* norm = is_query ? query_norm : key_norm;
    HeadPart part = raw[i].part();
    // Every lane of the warp takes part in the reduction, whatever its head needs.
    if (query_norm != nullptr || key_norm != nullptr) {
      const float scale = rsqrtf(sum_of_squares(part) / HEAD_DIM + eps);
      if (is_value) {
        if (NORMALISES_VALUES) multiply(part, scale);
      } else if (norm != nullptr) {
        scale_head(part, load_head(norm), scale);
      }
    }
    if (!exists || head >= all_heads) continue;
    const int64 cached = stored + static_cast<int64>(head - heads - (is_value ? kv_heads : 0)) * block_size * HEAD_DIM;
    if (is_value) {
#if defined(CACHE_FLOAT8) || defined(NORMS_VALUES)
      if (slot >= 0) store_cached(values + cached, part, value_scale);
#else
      if (slot >= 0) raw[i].store(values + cached);
#endif
      continue;
    }
    rotate(part, angles);
    if (SCALES_QUERIES && is_query) multiply(part, query_scale);
    if (is_query) store_head(row + head * HEAD_DIM, part);
    else if (slot >= 0) store_cached(keys + cached, part, key_scale);
  }
}
