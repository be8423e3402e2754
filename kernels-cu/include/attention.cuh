// The attention kernels' common ground: the model's constants and the layout of the paged cache.
//
// Defines: HEAD_DIM (D), GROUP_SIZE (query heads of a KV head, g), BLOCK_SIZE (tokens of a block, BS), and where a model has them
// SOFT_CAP, ATTENTION_SINKS.
//   qkv          [T, (g + 2)·NKV·D]   packed projections; queries first
//   keys, values [B, NKV, BS, D]      cache_t; a head's tokens within a block are contiguous
//   out          [T, g·NKV·D]
#pragma once
#include "cached.cuh"
#include "mma.cuh"

#if !defined(MAX_HEAD_DIM) || !defined(MAX_GROUP_SIZE)
#error "MAX_HEAD_DIM and MAX_GROUP_SIZE come from src/backend/cuda/ops/head-shape.ts"
#endif

static_assert(HEAD_DIM % 32 == 0 && HEAD_DIM <= MAX_HEAD_DIM, "HEAD_DIM must be a multiple of 32, at most MAX_HEAD_DIM");
static_assert(GROUP_SIZE >= 1 && GROUP_SIZE <= MAX_GROUP_SIZE, "GROUP_SIZE must be 1 to MAX_GROUP_SIZE");
static_assert((BLOCK_SIZE & (BLOCK_SIZE - 1)) == 0, "BLOCK_SIZE must be a power of two");

// 8-wide sides of products that take the query heads of a KV head.
constexpr int HEAD_TILES = ceil_div(GROUP_SIZE, 8);

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// SOFT_CAP: a score s, scaled, becomes cap · tanh(s / cap). ATTENTION_SINKS: the sum of softmax has a logit of the head besides.
#if defined(SOFT_CAP)
constexpr bool IS_CAPPED = true;
#else
constexpr bool IS_CAPPED = false;
#endif
#if defined(ATTENTION_SINKS)
constexpr bool HAS_SINKS = true;
#else
constexpr bool HAS_SINKS = false;
#endif
constexpr float LOG2_E = 1.44269504f;

// The score, in log2 units, of a product of a query and a key. Without a cap scale_log2 is their scale times log2(e). With one it
// is 2·log2(e) / cap times the scale, and cap_log2 the cap times log2(e): tanh(x) is 1 − 2 / (1 + e²ˣ).
__device__ __forceinline__ float log2_score(float product, float scale_log2, float cap_log2) {
  if constexpr (IS_CAPPED) return cap_log2 - __fdividef(2 * cap_log2, 1 + exp2_approx(product * scale_log2));
  return product * scale_log2;
}
// Products become log2 scores where those are capped: softmax then has softmax_scale for its scale.
template <int N>
__device__ __forceinline__ void cap_scores(float (&scores)[N], float scale_log2, float cap_log2) {
  if constexpr (IS_CAPPED) {
#pragma unroll
    for (int i = 0; i < N; i++) scores[i] = log2_score(scores[i], scale_log2, cap_log2);
  }
}
__device__ __forceinline__ float softmax_scale(float scale_log2) { return IS_CAPPED ? 1 : scale_log2; }

// `sum` is one of 2^(score − max). sinks [heads] of this launch; null without ATTENTION_SINKS.
__device__ __forceinline__ float with_sink(float sum, float max, const float* sinks, int head) {
  if constexpr (HAS_SINKS) return sum + exp2_approx(__ldg(sinks + head) * LOG2_E - max);
  return sum;
}

// One KV head of the paged keys or values, seen from dimension `first_dim` on.
struct PagedHead {
  const cache_t* base;
  int64 block_stride;

  __device__ PagedHead(const cache_t* pool, int head, int num_heads, int first_dim)
      : base(pool + head * (BLOCK_SIZE * HEAD_DIM) + first_dim),
        block_stride(static_cast<int64>(num_heads) * (BLOCK_SIZE * HEAD_DIM)) {}

  // The token at `position`, which lives in `block`.
  __device__ const cache_t* token(int block, uint32 position) const {
    return base + block * block_stride + position % BLOCK_SIZE * HEAD_DIM;
  }
};

// The same pointer with its known alignment forgotten: the compiler then folds constant offsets from it into loads,
// where it would otherwise compute each address by OR.
template <typename T>
__device__ __forceinline__ const T* opaque(const T* p) {
  asm("" : "+l"(p));
  return p;
}
