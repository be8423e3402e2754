// The products of a mixture of experts where many pairs share an expert; the same as experts_few.cu, for items of up to PAIRS pairs.
//
// Parallelisation: grid (tiles of ROWS weight rows, items); CTAs that run together have the same pairs and neighbouring rows. With UP
// a tile's rows are alternately 8 gates and the 8 rows that they gate, so that a thread has both halves of what it activates. STAGES
// chunks of DEPTH columns of x and of the weights are on their way to shared memory by cp.async while one is multiplied; warps share
// a tile as WARPS_PAIRS × WARPS_ROWS. Sums run through the columns in one order, whatever PAIRS is and whoever else is in the tile.
//
// Why this version: mma.sync runs on every GPU from Ampere on. With some tens of pairs an expert it is still bound by reading the
// weights, which small tiles of pairs do without waste; with hundreds, tiles of 128 × 128 are what a CTA's registers hold. Codes of
// MXFP4 and of 8-bit floats widen between shared memory and the tensor cores: a warp does so once for all of its pairs.
#include "activation.cuh"
#include "expert_items.cuh"
#include "experts_integers.cuh"
#include "mma.cuh"

#if !defined(ROWS) || !defined(DEPTH) || !defined(PAIRS) || !defined(STAGES) || !defined(UP)
#error "ROWS, DEPTH, PAIRS, STAGES and UP come from src/backend/cuda/ops/experts-tiles.ts"
#endif
#if !defined(TILE_THREADS) || !defined(MIN_CTAS)
#error "TILE_THREADS and MIN_CTAS come from src/backend/cuda/ops/experts-tiles.ts"
#endif
static_assert(DEPTH == 64, "a row of a chunk is the eight 16-byte pieces that a swizzle permutes");
static_assert(TILE_THREADS == 256, "eight warps divide a tile");
static_assert(PAIRS % 16 == 0 && ROWS % 64 == 0, "fragments are 16 pairs and 16 rows");

constexpr int WARPS = TILE_THREADS / WARP;
constexpr int WARPS_PAIRS = PAIRS >= 64 ? 2 : 1;
constexpr int WARPS_ROWS = WARPS / WARPS_PAIRS;
// Of a warp: fragments of 16 pairs, and of 16 rows.
constexpr int M = PAIRS / WARPS_PAIRS / 16;
constexpr int N = ROWS / WARPS_ROWS / 16;
static_assert(M >= 1 && N >= 1 && ROWS == N * WARPS_ROWS * 16, "warps divide the tile");
constexpr int PIECE = 8;
constexpr int PIECES = DEPTH / PIECE;
constexpr int PAIR_BYTES = PAIRS * DEPTH * 2;
// Of a row of a chunk: codes are fewer 16-byte pieces, which need no swizzle.
constexpr int ROW_PIECE = PIECE_COLUMNS;
constexpr int ROW_PIECES = DEPTH / ROW_PIECE;
// Scales of whole rows, with BLOCK_COLUMNS of 0, are for sums at the end, and those of blocks of 8-bit floats for the sums of a chunk. MXFP4's,
// and those of groups of integers, are for a piece's elements: there are no registers for sums of chunks beside their zero points.
constexpr bool SCALES_SUMS = FLOAT8 || (INTEGERS && BLOCK_COLUMNS == 0);
constexpr bool IN_BLOCKS = FLOAT8 && BLOCK_COLUMNS > 0;
static_assert(!FLOAT8 || BLOCK_COLUMNS % DEPTH == 0, "a row of a chunk has one scale");
static_assert(!INTEGERS || BLOCK_COLUMNS % ROW_PIECE == 0, "a piece has one scale");
constexpr int STAGE_BYTES = PAIR_BYTES + ROWS * ROW_PIECES * 16;
// What widening needs to know of a row of a chunk: of each piece its scale, with integers its zero point, too, or that of the chunk.
constexpr bool WIDENS_BY_SCALE = MXFP4 || INTEGERS;
constexpr int GROUPS = MXFP4 || (INTEGERS && BLOCK_COLUMNS % DEPTH != 0) ? ROW_PIECES : 1;
constexpr int GROUP_COLUMNS = MXFP4 ? MXFP4_GROUP : BLOCK_COLUMNS;
constexpr int OUT_ROWS = UP ? ROWS / 2 : ROWS;

// Byte offset of a piece of a row of a chunk: neighbouring rows have theirs in another order, which spreads them over the banks.
__device__ __forceinline__ uint32 piece_at(int row, int piece) { return (row * PIECES + (piece ^ row % PIECES)) * PIECE * 2; }

extern "C" __global__ void __launch_bounds__(TILE_THREADS, MIN_CTAS)
    experts_tiles(elem_t* out, const elem_t* x, const unsigned char* __restrict__ matrices,
                  const unsigned char* __restrict__ scales, const unsigned char* __restrict__ zeros,
                  const elem_t* __restrict__ biases, const int32* sorted, const float* weights, const Item* items, int k,
                  int in_features, int outputs, int activation, float alpha, float limit) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP;
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Item item = load_item(items, blockIdx.y);
  if (item.count == 0) return;

  const int first = blockIdx.x * OUT_ROWS;
  const int rows = UP ? 2 * outputs : outputs;
  // The expert's row of a row of the tile; −1 past the end.
  const auto row_of = [&](int row) {
    const int output = first + (UP ? row / 16 * 8 + row % 8 : row);
    return output >= outputs ? -1 : UP && row % 16 >= 8 ? outputs + output : output;
  };
  const int64 expert_row = static_cast<int64>(item.expert) * rows;

  // Each thread copies a piece of every COPY_ROWSth row of pairs, and of every WEIGHT_ROWSth row of weights.
  constexpr int COPY_ROWS = TILE_THREADS / PIECES, WEIGHT_ROWS = TILE_THREADS / ROW_PIECES;
  constexpr int PAIR_COPIES = (PAIRS + COPY_ROWS - 1) / COPY_ROWS, ROW_COPIES = ROWS / WEIGHT_ROWS;
  static_assert(ROWS % WEIGHT_ROWS == 0, "all threads copy as many rows");
  const int piece = tid % PIECES, copy_row = tid / PIECES, row_piece = tid % ROW_PIECES, weight_row = tid / ROW_PIECES;
  const elem_t* from_pairs[PAIR_COPIES];
  const unsigned char* from_rows[ROW_COPIES];
#pragma unroll
  for (int i = 0; i < PAIR_COPIES; i++) {
    const int row = copy_row + i * COPY_ROWS;
    from_pairs[i] = nullptr;
    if (row < item.count) {
      const int source = UP ? load_coherent(sorted + item.first + row) / k : item.first + row;
      from_pairs[i] = x + static_cast<int64>(source) * in_features + piece * PIECE;
    }
  }
#pragma unroll
  for (int i = 0; i < ROW_COPIES; i++) {
    const int row = row_of(weight_row + i * WEIGHT_ROWS);
    from_rows[i] = row < 0 ? nullptr : matrices + ((expert_row + row) * in_features / ROW_PIECE + row_piece) * 16;
  }
  const uint32 base = shared_address(shared);
  const auto copy_chunk = [&](int chunk) {
    const uint32 stage = base + chunk % STAGES * STAGE_BYTES;
    const int at = chunk * DEPTH;
    const bool is_inside = at + piece * PIECE < in_features;
#pragma unroll
    for (int i = 0; i < PAIR_COPIES; i++) {
      const int row = copy_row + i * COPY_ROWS;
      const bool valid = is_inside && from_pairs[i] != nullptr;
      if (PAIRS % COPY_ROWS == 0 || row < PAIRS)
        cp_async16(stage + piece_at(row, piece), valid ? from_pairs[i] + at : x, valid);
    }
    const bool row_inside = at + row_piece * ROW_PIECE < in_features;
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++) {
      const bool valid = row_inside && from_rows[i] != nullptr;
      const int row = weight_row + i * WEIGHT_ROWS;
      const uint32 to = CODES4 || CODES8 ? (row * ROW_PIECES + row_piece) * 16 : piece_at(row, row_piece);
      cp_async16(stage + PAIR_BYTES + to, valid ? from_rows[i] + at / ROW_PIECE * 16 : matrices, valid);
    }
  };
  const int chunks = ceil_div(in_features, DEPTH);
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < chunks) copy_chunk(i);
    cp_async_commit();
  }

  const int pair_base = warp / WARPS_ROWS * M * 16, row_base = warp % WARPS_ROWS * N * 16;
  float d[M][2 * N][4] = {};
  // Scales of an expert's row.
  const int row_scales = GROUP_COLUMNS > 0 ? ceil_div(in_features, GROUP_COLUMNS > 0 ? GROUP_COLUMNS : 1) : 1;
  // Where those of this lane's rows begin that it widens, one for each 8 of the warp's, and what it needs for a chunk.
  [[maybe_unused]] int64 widened[2 * N] = {};
  [[maybe_unused]] uint32 next_scales[2 * N][GROUPS];
  [[maybe_unused]] const auto load_scales = [&](int chunk) {
#pragma unroll
    for (int j = 0; j < 2 * N; j++)
#pragma unroll
      for (int g = 0; g < GROUPS; g++) {
        const int column = chunk * DEPTH + g * ROW_PIECE;
        const int64 at = widened[j] + (GROUP_COLUMNS > 0 ? column / (GROUP_COLUMNS > 0 ? GROUP_COLUMNS : 1) : 0);
        next_scales[j][g] = 0;
        if (column >= in_features) continue;
        if (MXFP4) next_scales[j][g] = scales[at];
        if (INTEGERS)
          next_scales[j][g] = group_word(SCALES_SUMS ? 0 : reinterpret_cast<const uint16*>(scales)[at], ZEROS ? zeros[at] : MIDDLE);
      }
  };
  // Where those of the rows begin that this lane has sums of, two for each 8.
  [[maybe_unused]] int64 summed[2 * N][2] = {};
  [[maybe_unused]] const auto sum_scale = [&](int j, int e, int block) {
    const int64 at = summed[j][e] + block;
    return FLOAT8 ? reinterpret_cast<const float*>(scales)[at] : group_scale(reinterpret_cast<const uint16*>(scales)[at]);
  };
  if constexpr (SCALES_SUMS) {
#pragma unroll
    for (int j = 0; j < 2 * N; j++)
#pragma unroll
      for (int e = 0; e < 2; e++) {
        const int row = row_of(row_base + j * 8 + lane % 4 * 2 + e);
        summed[j][e] = (expert_row + (row < 0 ? 0 : row)) / BLOCK_ROWS * row_scales;
      }
  }
  if constexpr (WIDENS_BY_SCALE) {
#pragma unroll
    for (int j = 0; j < 2 * N; j++) {
      const int row = row_of(row_base + j * 8 + lane / 4);
      widened[j] = (expert_row + (row < 0 ? 0 : row)) * row_scales;
    }
    load_scales(0);
  }
  for (int chunk = 0; chunk < chunks; chunk++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (chunk + STAGES - 1 < chunks) copy_chunk(chunk + STAGES - 1);
    cp_async_commit();
    const uint32 pairs = base + chunk % STAGES * STAGE_BYTES, tile = pairs + PAIR_BYTES;
    // Of MXFP4 the scales as elements, of integers the zero points, and in small groups their scales.
    [[maybe_unused]] uint32 factors[2 * N][GROUPS];
    [[maybe_unused]] float small_factors[2 * N][GROUPS];
    [[maybe_unused]] uint4 codes[2 * N][ROW_PIECES];
    float chunk_sums[M][2 * N][4] = {}, chunk_scales[2 * N][2];
    float(&sums)[M][2 * N][4] = IN_BLOCKS ? chunk_sums : d;
    if constexpr (IN_BLOCKS) {
#pragma unroll
      for (int j = 0; j < 2 * N; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) chunk_scales[j][e] = sum_scale(j, e, chunk * DEPTH / (IN_BLOCKS ? BLOCK_COLUMNS : 1));
    }
    if constexpr (CODES4) {
#pragma unroll
      for (int j = 0; j < 2 * N; j++)
#pragma unroll
        for (int g = 0; g < ROW_PIECES; g++)
          codes[j][g] = load16_shared(tile + ((row_base + j * 8 + lane / 4) * ROW_PIECES + g) * 16);
    }
    if constexpr (WIDENS_BY_SCALE) {
#pragma unroll
      for (int j = 0; j < 2 * N; j++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
          factors[j][g] = MXFP4 ? mxfp4_factor(next_scales[j][g]) : group_offset(next_scales[j][g]);
          small_factors[j][g] = INTEGERS && !SCALES_SUMS ? group_scale(next_scales[j][g]) : 1;
        }
      if (chunk + 1 < chunks) load_scales(chunk + 1);
    }
#pragma unroll
    for (int step = 0; step < DEPTH / 16; step++) {
      uint32 a[M][4], b[2 * N][2];
      // Matrices of a: rows 0 to 7 and 8 to 15 of the low half of k, then of the high half. Of weights: both halves of k of rows 0 to 7, then
      // of 8 to 15.
#pragma unroll
      for (int i = 0; i < M; i++) ldmatrix_x4(a[i], pairs + piece_at(pair_base + i * 16 + lane % 16, step * 2 + lane / 16));
      // The piece's number among those of a chunk that have factors of their own.
      [[maybe_unused]] const int g = GROUPS == 1 ? 0 : step * 16 / ROW_PIECE;
      const auto scaled = [&](int j, uint32 pair) { return INTEGERS && !SCALES_SUMS ? times(pair, small_factors[j][g]) : pair; };
      if constexpr (CODES4) {
        // Columns 2c and 2c + 8 make a pair, and 2c + 1 and 2c + 9: those of a byte of one word and of the same byte of the next.
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const uint32 low = a[i][half], high = a[i][half + 2];
            a[i][half] = low_halves(low, high), a[i][half + 2] = high_halves(low, high);
          }
        const uint32 selector = lane % 4 * 0x11 | (4 + lane % 4) * 0x1100;
#pragma unroll
        for (int j = 0; j < 2 * N; j++) {
          const uint4 all = codes[j][step / 2];
          const uint32 bytes = step % 2 ? select_bytes(all.z, all.w, selector) : select_bytes(all.x, all.y, selector);
          if constexpr (MXFP4) {
            b[j][0] = scale_pair(widen_codes<0>(bytes), factors[j][g]);
            b[j][1] = scale_pair(widen_codes<1>(bytes), factors[j][g]);
          } else {
            uint32 pairs[WORD_PAIRS];
            integer_pairs(pairs, bytes, factors[j][g]);
            b[j][0] = scaled(j, pairs[0]), b[j][1] = scaled(j, pairs[1]);
          }
        }
      } else if constexpr (CODES8) {
        // Columns 2c, 2c + 1, 2c + 8 and 2c + 9 of a step: the first two in the even bytes of a word.
        const uint32 selector = lane % 4 * 0x22 | 0x10;
#pragma unroll
        for (int j = 0; j < 2 * N; j++) {
          const uint4 all = load16_shared(tile + ((row_base + j * 8 + lane / 4) * ROW_PIECES + step) * 16);
          const uint32 word = select_bytes(select_bytes(all.x, all.y, selector), select_bytes(all.z, all.w, selector), 0x5140);
          if constexpr (FLOAT8) {
            b[j][0] = widen_even(word);
            b[j][1] = widen_odd(word);
          } else {
            uint32 pairs[WORD_PAIRS];
            integer_pairs(pairs, word, factors[j][g]);
            b[j][0] = scaled(j, pairs[0]), b[j][1] = scaled(j, pairs[1]);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
          uint32 both[4];
          ldmatrix_x4(both, tile + piece_at(row_base + i * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
          b[2 * i][0] = both[0], b[2 * i][1] = both[1], b[2 * i + 1][0] = both[2], b[2 * i + 1][1] = both[3];
        }
      }
#pragma unroll
      for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < 2 * N; j++)
          mma_m16n8k16(sums[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j][0], b[j][1]);
    }
    if constexpr (IN_BLOCKS) {
#pragma unroll
      for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < 2 * N; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) d[i][j][e] += chunk_sums[i][j][e] * chunk_scales[j][e % 2];
    }
  }
  if constexpr (SCALES_SUMS && !IN_BLOCKS) {
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
      for (int j = 0; j < 2 * N; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) d[i][j][e] *= sum_scale(j, e % 2, 0);
  }
  cp_async_wait<0>();

  const elem_t* bias = biases == nullptr ? nullptr : biases + static_cast<int64>(item.expert) * rows;
  const auto with_bias = [&](float y, int row) { return bias == nullptr ? y : y + to_float(bias[row]); };
#pragma unroll
  for (int i = 0; i < M; i++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = pair_base + i * 16 + half * 8 + lane / 4;
      if (row >= item.count) continue;
      const int s = item.first + row;
      if constexpr (UP) {
        elem_t* to = out + static_cast<int64>(s) * outputs;
#pragma unroll
        for (int j = 0; j < N; j++) {
          const int output = first + row_base / 2 + j * 8 + lane % 4 * 2;
          if (output >= outputs) continue;
          float y[2];
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const float gate = with_bias(d[i][2 * j][2 * half + e], output + e);
            const float up = with_bias(d[i][2 * j + 1][2 * half + e], outputs + output + e);
            y[e] = activate_pair(gate, up, activation, alpha, limit);
          }
          *reinterpret_cast<uint32*>(to + output) = pack2(y[0], y[1]);
        }
      } else {
        const int pair = load_coherent(sorted + s);
        const float weight = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(weights) + pair));
        elem_t* to = out + static_cast<int64>(pair) * outputs;
#pragma unroll
        for (int j = 0; j < 2 * N; j++) {
          const int output = first + row_base + j * 8 + lane % 4 * 2;
          if (output >= outputs) continue;
          const float y0 = with_bias(d[i][j][2 * half], output), y1 = with_bias(d[i][j][2 * half + 1], output + 1);
          *reinterpret_cast<uint32*>(to + output) = pack2(weight * y0, weight * y1);
        }
      }
    }
}
