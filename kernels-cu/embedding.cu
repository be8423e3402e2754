// embedding and gather_rows: out[i, :] = table[ids[i] − first, :], or zeros where the table has no such row; of embed_scaled,
// `scale` times that.
//
//   out    [count, units · COPY_BYTES] bytes        table  [rows, units · COPY_BYTES] bytes
//   ids    int32 [count]: in [first, first + rows) but for a table that is one rank's part of a larger one
//
// Parallelisation: grid (count), one block a row, one unit a thread at a time.
// Why this version: a row is a contiguous copy of a few KB, so 16-byte units and enough rows in flight already reach the
// memory's rate; COPY_BYTES is the size of one element only for rows that are not a multiple of 16 bytes.
#include "types.cuh"

#if COPY_BYTES == 16
using unit_t = uint4;
#elif COPY_BYTES == 4
using unit_t = uint32;
#else
using unit_t = uint16;
#endif
static_assert(sizeof(unit_t) == COPY_BYTES, "COPY_BYTES must be 16, 4 or 2");

extern "C" __global__ void gather_rows(unit_t* __restrict__ out, const unit_t* __restrict__ table,
                                       const int32* __restrict__ ids, int32 units, int32 first, int32 rows) {
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = ids[blockIdx.x] - first;
  const bool is_there = row >= 0 && row < rows;
  const unit_t* from = table + static_cast<int64>(row) * units;
  unit_t* to = out + static_cast<int64>(blockIdx.x) * units;
  for (int i = threadIdx.x; i < units; i += blockDim.x) to[i] = is_there ? from[i] : unit_t{};
}

extern "C" __global__ void embed_scaled(elem_t* __restrict__ out, const elem_t* __restrict__ table,
                                        const int32* __restrict__ ids, int32 units, int32 first, int32 rows, float scale) {
  constexpr int ACCESS = COPY_BYTES / sizeof(elem_t);
  static_assert(ACCESS == 1 || ACCESS == VEC, "COPY_BYTES is one element or one 16-byte vector");
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const int row = ids[blockIdx.x] - first;
  const bool is_there = row >= 0 && row < rows;
  const elem_t* from = table + static_cast<int64>(row) * units * ACCESS;
  elem_t* to = out + static_cast<int64>(blockIdx.x) * units * ACCESS;
  for (int i = threadIdx.x; i < units; i += blockDim.x) {
    float x[ACCESS] = {};
    if (is_there) load_elems<ACCESS>(from + i * ACCESS, x);
#pragma unroll
    for (int j = 0; j < ACCESS; j++) x[j] *= scale;
    store_elems<ACCESS>(to + i * ACCESS, x);
  }
}
