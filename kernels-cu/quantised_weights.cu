// Quantised weights as a whole: their order, and their elements.
//
//   reorder_codes     canonical codes [N, K] → the order of quantised.cuh
//   reorder_rows      [N, G] of so many bytes → [N / 8][G][8 rows]: scales and zero points, superblocks' steps and units
//   dequantise_…      out elem_t [N, K] = what a weight stands for, rounded once, from either order
//   permute_columns   out elem_t [T, K] = x[T, permutation]
//
// Parallelisation: a thread makes one word of codes, one scale, 16 · 8 / BITS columns of a row (one column, where codes have no order), or
// one column of one token. A strip's neighbours in a warp write whole sectors.
// Why this version: the first two run once, when a weight was loaded. Dequantising writes 2 or 4 times what it reads, so it is
// bound by its writes, which are 16 bytes a thread, one after another.
#include "quantised.cuh"

__device__ __forceinline__ int64 thread_index() { return static_cast<int64>(blockIdx.x) * blockDim.x + threadIdx.x; }

extern "C" __global__ void reorder_codes(uint32* out, const unsigned char* codes, int inputs, int rows) {
  GRID_DEPENDENCY_WAIT();
  const int64 index = thread_index();
  const int word = index % 4, c = index / 4 % 4, r = index / 16 % STRIP;
  const int blocks = inputs / BLOCK;
  const int64 block = index / (16 * STRIP), strip = block / blocks;
  if (strip >= rows / STRIP) return;
  const int row_bytes = blocks * BLOCK_BYTES;
  // Columns 2c and the next of each 8 are together in both orders of 4 bits.
  const int first = BITS == 8 ? 16 * word + 2 * c : 16 * word + c;
  const unsigned char* from = codes + (strip * STRIP + r) * row_bytes + block % blocks * BLOCK_BYTES + first;
  uint32 y = 0;
#if BITS == 8
  y = from[0] | from[8] << 8 | from[1] << 16 | static_cast<uint32>(from[9]) << 24;
#else
  for (int e = 0; e < 4; e++) y |= (from[4 * e] & 15u) << 4 * e | (from[4 * e] >> 4 & 15u) << (16 + 4 * e);
#endif
  out[index] = y;
}

extern "C" __global__ void reorder_rows(unsigned char* out, const unsigned char* from, int groups, int rows, int bytes) {
  GRID_DEPENDENCY_WAIT();
  const int64 index = thread_index();
  if (index >= static_cast<int64>(rows) * groups) return;
  const int r = index % STRIP;
  const int64 group = index / STRIP % groups, strip = index / STRIP / groups;
  const int64 source = (strip * STRIP + r) * groups + group;
  for (int i = 0; i < bytes; i++) out[index * bytes + i] = from[source * bytes + i];
}

// Where the scale, and the zero point, of an element is.
struct Scales {
  const void* scales;
  const unsigned char* zeros;
  const void* units;
  int group_size, groups, block_rows, ordered;

  __device__ __forceinline__ int64 index(int row, int column) const {
    if (SCALES == ROW_FLOATS) return row;
    const int group = column / group_size;
    if (SCALES == BLOCK_FLOATS) return static_cast<int64>(row / block_rows) * groups + group;
    return of_group(row, group, groups);
  }
  __device__ __forceinline__ int64 of_group(int row, int group, int count) const {
    return ordered ? (static_cast<int64>(row / STRIP) * count + group) * STRIP + row % STRIP
                   : static_cast<int64>(row) * count + group;
  }
  // Of a group of superblocks.
  __device__ __forceinline__ GroupFactors stepped_factors(int row, int column, int inputs) const {
    const int shift = group_size == 16 ? 4 : 5;
    const int64 superblock = of_group(row, column / SUPERBLOCK, inputs / SUPERBLOCK);
    const int64 step = ((superblock << (8 - shift)) + (column % SUPERBLOCK >> shift)) * FACTORS;
    const uint32 word = static_cast<const uint32*>(scales)[step / 4];
    return group_factors(word, step % 4, load_units(units, superblock));
  }
  __device__ __forceinline__ float scale(int64 index) const {
    return GROUPED ? group_scale(static_cast<const uint16*>(scales)[index])
                   : static_cast<const float*>(scales)[index] * FLOAT8_FACTOR;
  }
  __device__ __forceinline__ uint32 offset(int64 index) const { return offset_of(ZEROS ? zeros[index] : USUAL_ZERO); }
};

// Of ordered codes. Grid: a strip in x, BLOCK_BYTES / 16 threads a row's block in y.
extern "C" __global__ void dequantise_ordered(elem_t* out, const unsigned char* codes, const void* scales,
                                              const unsigned char* zeros, const void* units, int inputs, int group_size,
                                              int groups, int block_rows) {
  GRID_DEPENDENCY_WAIT();
  const Scales factors = {scales, zeros, units, group_size, groups, block_rows, 1};
  // Word `word` of the four lanes of a row's block: WORD_PAIRS pieces of 8 columns.
  const int blocks = inputs / BLOCK, index = blockIdx.y * blockDim.x + threadIdx.x, word = index % 4;
  const int block = index / 4 % blocks, r = index / 4 / blocks;
  if (r >= STRIP) return;
  const int row = blockIdx.x * STRIP + r, column = block * BLOCK + word * WORD_PAIRS * 8;
  const int64 source = static_cast<int64>(blockIdx.x) * blocks + block;
  const uint32* from = reinterpret_cast<const uint32*>(codes + (source * STRIP + r) * BLOCK_BYTES) + word;
  const uint32 words[4] = {from[0], from[4], from[8], from[12]};
  // Of superblocks a word's columns are of one group.
  [[maybe_unused]] const GroupFactors of_word = STEPPED ? factors.stepped_factors(row, column, inputs) : GroupFactors{};
#pragma unroll
  for (int piece = 0; piece < WORD_PAIRS; piece++) {
    const int64 at = STEPPED ? 0 : factors.index(row, column + piece * 8);
    const GroupFactors group = STEPPED ? of_word : GroupFactors{factors.scale(at), 0};
    const uint32 offset = factors.offset(at);
    uint32 y[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      uint32 pairs[WORD_PAIRS];
      dequantise(pairs, words[c], offset);
      float a, b;
      unpack2(pairs[piece], a, b);
      y[c] = pack2(a * group.scale - group.minimum, b * group.scale - group.minimum);
    }
    store16(out + static_cast<int64>(row) * inputs + column + piece * 8, make_uint4(y[0], y[1], y[2], y[3]));
  }
}

// Of codes [N, K] in canonical order. Grid: a row in x, a column a thread in y.
extern "C" __global__ void dequantise_rows(elem_t* out, const unsigned char* codes, const void* scales,
                                           const unsigned char* zeros, const void* units, int inputs, int group_size,
                                           int groups, int block_rows) {
  GRID_DEPENDENCY_WAIT();
  const Scales factors = {scales, zeros, units, group_size, groups, block_rows, 0};
  const int row = blockIdx.x, column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= inputs) return;
  const int64 at = STEPPED ? 0 : factors.index(row, column), index = static_cast<int64>(row) * inputs + column;
  const uint32 code = BITS == 8 ? codes[index] : codes[index / 2] >> 4 * (column % 2) & 15;
  uint32 pairs[WORD_PAIRS];
  dequantise(pairs, code, factors.offset(at));
  float value, unused;
  unpack2(pairs[0], value, unused);
  const GroupFactors group =
      STEPPED ? factors.stepped_factors(row, column, inputs) : GroupFactors{factors.scale(at), 0};
  out[index] = from_float(value * group.scale - group.minimum);
}

extern "C" __global__ void permute_columns(elem_t* out, const elem_t* x, const int* permutation, int tokens, int inputs) {
  GRID_DEPENDENCY_WAIT();
  const int64 index = thread_index();
  if (index >= static_cast<int64>(tokens) * inputs) return;
  const int64 row = index / inputs * inputs;
  out[index] = load_coherent(x + row + permutation[index - row]);
}
