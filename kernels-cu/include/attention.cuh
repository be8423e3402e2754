// The attention kernels' common ground: the model's constants and the layout of the paged cache.
//
// Defines: HEAD_DIM (D), GROUP_SIZE (query heads of a KV head, g), BLOCK_SIZE (tokens of a block, BS).
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
