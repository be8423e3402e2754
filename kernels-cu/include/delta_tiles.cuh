// Tiles of elements in shared memory and products of their fragments by tensor cores, for the chunks of the gated delta rule.
#pragma once
#include "mma.cuh"
#include "types.cuh"

// Rows of tiles are apart by 16 bytes more than they have, so that those that are read together lie on different banks.
constexpr int PAD = VEC;

template <int ROWS, int COLUMNS>
struct Tile {
  elem_t rows[ROWS][COLUMNS + PAD];

  // Rows from `from` on, `stride` elements apart, of which `count` are there; zeros for the others.
  template <int THREADS>
  __device__ __forceinline__ void copy(const elem_t* from, int64 stride, int count) {
    constexpr int PIECES = COLUMNS / VEC;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
      const int row = i / PIECES, piece = i % PIECES;
      const bool valid = row < count;
      cp_async16(shared_address(&rows[row][piece * VEC]), from + (valid ? row * stride + piece * VEC : 0), valid);
    }
  }
  // Fragment of A: rows from `row` on, k from `k` on.
  __device__ __forceinline__ void load_a(uint32 (&a)[4], int row, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(a, shared_address(&rows[row + lane % 16][k + lane / 16 * 8]));
  }
  // The same of the transpose: rows are k.
  __device__ __forceinline__ void load_a_trans(uint32 (&a)[4], int row, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(a, shared_address(&rows[k + lane % 8 + lane / 16 * 8][row + lane / 8 % 2 * 8]));
  }
  // Fragments of B for 16 columns, which are rows here: columns from `column` on, k from `k` on.
  __device__ __forceinline__ void load_b(uint32 (&b)[4], int column, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4(b, shared_address(&rows[column + lane % 8 + lane / 16 * 8][k + lane / 8 % 2 * 8]));
  }
  // The same where rows are k.
  __device__ __forceinline__ void load_b_trans(uint32 (&b)[4], int column, int k) const {
    const int lane = threadIdx.x % WARP;
    ldmatrix_x4_trans(b, shared_address(&rows[k + lane % 16][column + lane / 16 * 8]));
  }
  __device__ __forceinline__ void store2(int row, int column, float first, float second) {
    *reinterpret_cast<uint32*>(&rows[row][column]) = pack2(first, second);
  }
};

// d[0] and d[1], of 8 columns each, += A · B.
__device__ __forceinline__ void multiply_pair(float (&d)[2][4], const uint32 (&a)[4], const uint32 (&b)[4]) {
  mma_m16n8k16(d[0], a[0], a[1], a[2], a[3], b[0], b[1]);
  mma_m16n8k16(d[1], a[0], a[1], a[2], a[3], b[2], b[3]);
}

__device__ __forceinline__ void store_pair(elem_t* to, float first, float second) {
  *reinterpret_cast<uint32*>(to) = pack2(first, second);
}
