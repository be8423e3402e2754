// Tiles of cached keys or values in eight bits on their way to Hopper's tensor cores: whole pages are copied as they are, and
// warps that wait for nothing else widen them to float16 in the swizzled tiles that are multiplied.
#pragma once
#include "hopper.cuh"
#include "query_tiles.cuh"

#if !defined(PREFILL_CODE_STAGES)
#error "PREFILL_CODE_STAGES comes from src/backend/cuda/ops/hopper-prefill.ts"
#endif

constexpr int CODE_STAGES = PREFILL_CODE_STAGES;

struct CodeBarriers {
  uint64 full[CODE_STAGES], empty[CODE_STAGES];
};

// KEYS tokens of codes [KEYS, HEAD_DIM] to the tile at `target`, with groups of 8 rows, by WARPS warps. A warp takes whole groups: where
// a lane stores then differs between groups by a constant. Lanes 8q .. 8q + 7 store 16 bytes of two rows each to different banks.
template <int KEYS, int WARPS>
__device__ __forceinline__ void widen_tile(uint32 target, uint32 codes, uint32 group_bytes, int warp, int lane) {
  constexpr int HALVES = HEAD_DIM / 64, GROUP_CODES = 8 * HEAD_DIM;
  const int row = lane / 4, piece = lane % 4;
  uint32 from = codes + warp * GROUP_CODES + row * HEAD_DIM + piece * VECTOR_BYTES;
  uint32 to = target + warp * group_bytes + matrix_offset(row, piece * 2, 0);
  const uint32 odd = to ^ VECTOR_BYTES;
  uint4 next[HALVES];
  const auto load = [&] {
#pragma unroll
    for (int half = 0; half < HALVES; half++) next[half] = load16_shared(from + half * 64);
    from += WARPS * GROUP_CODES;
  };
  load();
  uint32 offset = 0;
  for (int group = warp; group < KEYS / 8; group += WARPS) {
    uint4 v[HALVES];
#pragma unroll
    for (int half = 0; half < HALVES; half++) v[half] = next[half];
    if (group + WARPS < KEYS / 8) load();
#pragma unroll
    for (int half = 0; half < HALVES; half++) {
      uint4 low, high;
      unpack_float8x4(v[half].x, low.x, low.y), unpack_float8x4(v[half].y, low.z, low.w);
      unpack_float8x4(v[half].z, high.x, high.y), unpack_float8x4(v[half].w, high.z, high.w);
      store16_shared(to + offset + half * 1024, low);
      store16_shared(odd + offset + half * 1024, high);
    }
    offset += WARPS * group_bytes;
  }
}

// Turns ROWS queries of elements, in a matrix with groups of 8 rows, into what is multiplied. Each of THREADS threads does so with
// the pieces i that leave its number modulo THREADS, which it has copied.
template <int ROWS, int THREADS>
__device__ __forceinline__ void pack_queries(uint32 matrix, uint32 group_bytes, int thread) {
  constexpr int PIECES = HEAD_DIM / 8, AT_ONCE = 2;
#pragma unroll 1
  for (int first = thread; first < ROWS * PIECES; first += AT_ONCE * THREADS) {
    uint4 v[AT_ONCE];
    uint32 at[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int piece = first + i * THREADS;
      at[i] = matrix + matrix_offset(piece / PIECES, piece % PIECES, group_bytes);
      if (piece < ROWS * PIECES) v[i] = load16_shared(at[i]);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (first + i * THREADS < ROWS * PIECES)
        store16_shared(at[i], make_uint4(pack_query(v[i].x), pack_query(v[i].y), pack_query(v[i].z), pack_query(v[i].w)));
  }
}
