// rope_store: per-head RMSNorm of queries and keys, rotary embedding, then queries in place and keys and values to the
// paged cache.
//
//   qkv            elem_t [tokens, (heads + 2 · kv_heads) · HEAD_DIM]: queries, keys, values
//   keys, values   elem_t [blocks, kv_heads, block_size, HEAD_DIM]
//   cos_sin        float [positions, ROTARY_DIM]: cosines, then sines
//   positions, slot_mapping  int32 [tokens]; a negative slot stores nothing
//   query_norm, key_norm     elem_t [HEAD_DIM] or null
//
// Parallelisation: grid (tokens, pieces of the heads); LANES neighbouring lanes of a warp share a head. A lane holds PAIRS
// consecutive pairs (i, i + ROTARY_DIM / 2): both halves of a pair are in one thread, so rotation needs no exchange and
// the norm only a shuffle reduction. Dimensions past ROTARY_DIM are treated as pairs that are not rotated.
// Why this version: one read of the projections and one write of what is kept; the rotated keys are written to the cache
// alone, as attention reads them there.
#include "types.cuh"

#if !defined(HEAD_PAIRS) || !defined(HEAD_LANES)
#error "HEAD_PAIRS and HEAD_LANES come from src/backend/cuda/ops/rotary.ts"
#endif
static_assert(HEAD_DIM % 2 == 0 && ROTARY_DIM % 2 == 0, "rotary embedding works on pairs of dimensions");
static_assert(0 <= ROTARY_DIM && ROTARY_DIM <= HEAD_DIM, "a head has HEAD_DIM dimensions to rotate");

constexpr int HALF = ROTARY_DIM / 2;
constexpr int TAIL_HALF = (HEAD_DIM - ROTARY_DIM) / 2;
constexpr int PAIRS = HEAD_PAIRS;
constexpr int LANES = HEAD_LANES;
constexpr int PIECES_PER_LANE = ceil_div(HEAD_DIM / 2 / PAIRS, LANES);
static_assert(PAIRS <= VEC && (PAIRS & (PAIRS - 1)) == 0, "HEAD_PAIRS must be a power of two, at most a vector");
static_assert(HALF % PAIRS == 0 && TAIL_HALF % PAIRS == 0, "HEAD_PAIRS must divide what is rotated and what is not");
static_assert(LANES <= WARP && (LANES & (LANES - 1)) == 0, "HEAD_LANES must be a power of two, at most a warp");

// One lane's share of a head. Pieces past the end are 0 and are never stored.
struct HeadPart {
  float first[PIECES_PER_LANE][PAIRS];
  float second[PIECES_PER_LANE][PAIRS];
};

__device__ __forceinline__ int lane_pair(int piece) { return (piece * LANES + threadIdx.x % LANES) * PAIRS; }
__device__ __forceinline__ int first_dim(int pair) { return pair < HALF ? pair : HALF + pair; }
__device__ __forceinline__ int second_dim(int pair) { return first_dim(pair) + (pair < HALF ? HALF : TAIL_HALF); }

__device__ __forceinline__ HeadPart load_head(const elem_t* head) {
  HeadPart part = {};
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HEAD_DIM / 2) continue;
    load_elems<PAIRS>(head + first_dim(pair), part.first[piece]);
    load_elems<PAIRS>(head + second_dim(pair), part.second[piece]);
  }
  return part;
}

__device__ __forceinline__ void store_head(elem_t* head, const HeadPart& part) {
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HEAD_DIM / 2) continue;
    store_elems<PAIRS>(head + first_dim(pair), part.first[piece]);
    store_elems<PAIRS>(head + second_dim(pair), part.second[piece]);
  }
}

__device__ __forceinline__ void load_angles(const float* from, float (&angles)[PAIRS]) {
  if constexpr (PAIRS % 4 == 0) {
#pragma unroll
    for (int i = 0; i < PAIRS; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      angles[i] = four.x, angles[i + 1] = four.y, angles[i + 2] = four.z, angles[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) angles[i] = from[i];
  }
}

__device__ __forceinline__ void rotate(HeadPart& part, const float* cos_sin) {
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HALF) continue;
    float cosines[PAIRS], sines[PAIRS];
    load_angles(cos_sin + pair, cosines);
    load_angles(cos_sin + HALF + pair, sines);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const float x = part.first[piece][i], y = part.second[piece][i];
      part.first[piece][i] = x * cosines[i] - y * sines[i];
      part.second[piece][i] = y * cosines[i] + x * sines[i];
    }
  }
}

// The lanes of a head call together.
__device__ __forceinline__ float sum_of_squares(const HeadPart& part) {
  float squares = 0;
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++)
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
      squares += part.first[piece][i] * part.first[piece][i] + part.second[piece][i] * part.second[piece][i];
  return warp_sum<LANES>(squares);
}

__device__ __forceinline__ void scale_head(HeadPart& part, const HeadPart& weight, float scale) {
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++)
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      part.first[piece][i] *= scale * weight.first[piece][i];
      part.second[piece][i] *= scale * weight.second[piece][i];
    }
}

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
  // Not before: attention reads what the kernels before this one wrote without waiting for this one.
  GRID_DEPENDENCY_LAUNCH();
  const int token = blockIdx.x;
  elem_t* at = qkv + (static_cast<int64>(token) * all_heads + head) * HEAD_DIM;
  HeadPart part = {};
  if (head < all_heads) part = load_head(at);
  // Every lane of the warp takes part in the reduction, whatever its head needs.
  if (query_norm != nullptr || key_norm != nullptr) {
    const float scale = rsqrtf(sum_of_squares(part) / HEAD_DIM + eps);
    if (norm != nullptr) scale_head(part, weight, scale);
  }
  if (head >= all_heads) return;
  if (!is_value) rotate(part, cos_sin + static_cast<int64>(positions[token]) * ROTARY_DIM);
  if (is_query) return store_head(at, part);

  const int slot = slot_mapping[token];
  if (slot < 0) return;
  const int kv_head = head - heads - (is_value ? kv_heads : 0);
  const int64 row = (static_cast<int64>(slot / block_size) * kv_heads + kv_head) * block_size + slot % block_size;
  store_head((is_value ? values : keys) + row * HEAD_DIM, part);
}
