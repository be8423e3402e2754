// A head of the projections in the registers of neighbouring lanes: RMSNorm and rotary embedding.
//
// LANES neighbouring lanes of a warp share a head. A lane holds PAIRS consecutive pairs (i, i + ROTARY_DIM / 2): both halves
// of a pair are in one thread, so rotation needs no exchange and the norm only a shuffle reduction. Dimensions past ROTARY_DIM
// are treated as pairs that are not rotated.
#pragma once
#include "cached.cuh"

#if !defined(HEAD_PAIRS) || !defined(HEAD_LANES)
#error "HEAD_PAIRS and HEAD_LANES come from src/backend/cuda/ops/head-part.ts"
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

// QUERY_SCALES: queries are multiplied by a factor of their position.
#if defined(QUERY_SCALES)
constexpr bool SCALES_QUERIES = true;
#else
constexpr bool SCALES_QUERIES = false;
#endif

// NORMS_VALUES: values are normalised, too, without a weight.
#if defined(NORMS_VALUES)
constexpr bool NORMALISES_VALUES = true;
#else
constexpr bool NORMALISES_VALUES = false;
#endif

// One lane's share of a head. Pieces past the end are 0 and are never stored.
struct HeadPart {
  float first[PIECES_PER_LANE][PAIRS];
  float second[PIECES_PER_LANE][PAIRS];
};

__device__ __forceinline__ int lane_pair(int piece) { return (piece * LANES + threadIdx.x % LANES) * PAIRS; }
__device__ __forceinline__ int first_dim(int pair) { return pair < HALF ? pair : HALF + pair; }
__device__ __forceinline__ int second_dim(int pair) { return first_dim(pair) + (pair < HALF ? HALF : TAIL_HALF); }

// With COHERENT, as load16_coherent has it.
template <bool COHERENT = false>
__device__ __forceinline__ HeadPart load_head(const elem_t* head) {
  HeadPart part = {};
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HEAD_DIM / 2) continue;
    load_elems<PAIRS, COHERENT>(head + first_dim(pair), part.first[piece]);
    load_elems<PAIRS, COHERENT>(head + second_dim(pair), part.second[piece]);
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

// A head of keys or values to its place in the cache, divided by their scale if the cache has any.
#if defined(CACHE_FLOAT8)
template <int N>
__device__ __forceinline__ void store_float8(cache_t* to, const float (&x)[N], float factor) {
  if constexpr (N == 1) {
    to->bits = static_cast<unsigned char>(pack_float8x2(x[0] * factor, 0));
  } else {
    uint16 codes[N / 2];
#pragma unroll
    for (int i = 0; i < N; i += 2) codes[i / 2] = pack_float8x2(x[i] * factor, x[i + 1] * factor);
    if constexpr (N == 2) {
      *reinterpret_cast<uint16*>(to) = codes[0];
    } else {
#pragma unroll
      for (int i = 0; i < N / 4; i++)
        reinterpret_cast<uint32*>(to)[i] = codes[i * 2] | static_cast<uint32>(codes[i * 2 + 1]) << 16;
    }
  }
}
__device__ __forceinline__ void store_cached(cache_t* head, const HeadPart& part, float scale) {
  const float factor = 1 / scale;
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HEAD_DIM / 2) continue;
    store_float8(head + first_dim(pair), part.first[piece], factor);
    store_float8(head + second_dim(pair), part.second[piece], factor);
  }
}
// A query as attention multiplies it, in the place of as many elements.
__device__ __forceinline__ void store_query(elem_t* head, const HeadPart& part) {
  const auto store = [](elem_t* to, const float (&x)[PAIRS]) {
    if constexpr (PAIRS == 1) {
      to->bits = static_cast<uint16>(pack_query(x[0], 0));
    } else {
#pragma unroll
      for (int i = 0; i < PAIRS; i += 2) reinterpret_cast<uint32*>(to)[i / 2] = pack_query(x[i], x[i + 1]);
    }
  };
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HEAD_DIM / 2) continue;
    store(head + first_dim(pair), part.first[piece]);
    store(head + second_dim(pair), part.second[piece]);
  }
}
#else
__device__ __forceinline__ void store_cached(cache_t* head, const HeadPart& part, float) { store_head(head, part); }
#endif

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

// Cosines and sines for one lane's pairs.
struct HeadAngles {
  float cosines[PIECES_PER_LANE][PAIRS];
  float sines[PIECES_PER_LANE][PAIRS];
};

// cos_sin: the row of a position.
__device__ __forceinline__ HeadAngles load_head_angles(const float* cos_sin) {
  HeadAngles angles = {};
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    const int pair = lane_pair(piece);
    if (pair >= HALF) continue;
    load_angles(cos_sin + pair, angles.cosines[piece]);
    load_angles(cos_sin + HALF + pair, angles.sines[piece]);
  }
  return angles;
}

__device__ __forceinline__ void rotate(HeadPart& part, const HeadAngles& angles) {
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++) {
    if (lane_pair(piece) >= HALF) continue;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
      const float x = part.first[piece][i], y = part.second[piece][i];
      const float cosine = angles.cosines[piece][i], sine = angles.sines[piece][i];
      part.first[piece][i] = x * cosine - y * sine;
      part.second[piece][i] = y * cosine + x * sine;
    }
  }
}

__device__ __forceinline__ void multiply(HeadPart& part, float factor) {
#pragma unroll
  for (int piece = 0; piece < PIECES_PER_LANE; piece++)
#pragma unroll
    for (int i = 0; i < PAIRS; i++) part.first[piece][i] *= factor, part.second[piece][i] *= factor;
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
