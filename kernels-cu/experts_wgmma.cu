// The products of a mixture of experts where many pairs share an expert, by weights in floats, on Hopper's asynchronous tensor cores; the
// same as experts_tiles.cu, for items of up to PAIRS pairs.
//
// Parallelisation: grid (tiles of ROWS weight rows, items); CTAs that run together have the same pairs and neighbouring rows. STAGES
// chunks of 64 columns of x and of the weights are on their way to shared memory by cp.async while one is multiplied. Two warpgroups
// have 64 pairs each and all rows of the tile, or with 64 PAIRS half of the rows each.
//
// Why this version: rows of x are anywhere, so each is gathered by lanes rather than by the copy engine, in the swizzle that wgmma reads.
// Two CTAs a multiprocessor multiply by turns: while one waits for copies or at a barrier, the other's products run. Which weight row is
// which column of a product is free, so that a thread has neighbouring outputs, with both gates and what they gate, and stores 16 bytes
// at a time. Measured figures and other tiles are in bench/NOTES.md.
#include "activation.cuh"
#include "expert_items.cuh"
#include "hopper.cuh"

#if !defined(ROWS) || !defined(DEPTH) || !defined(PAIRS) || !defined(STAGES) || !defined(UP) || !defined(TILE_THREADS)
#error "ROWS, DEPTH, PAIRS, STAGES, UP and TILE_THREADS come from src/backend/cuda/ops/experts-wgmma.ts"
#endif

constexpr int WARPGROUP = 4 * WARP;
constexpr int PAIR_GROUPS = PAIRS / 64;
constexpr int ROW_GROUPS = TILE_THREADS / WARPGROUP / PAIR_GROUPS;
static_assert(PAIRS % 64 == 0 && PAIR_GROUPS * ROW_GROUPS * WARPGROUP == TILE_THREADS, "a warpgroup multiplies 64 pairs");
static_assert(DEPTH == 64, "a swizzled row is 64 elements");
// Weight rows of a warpgroup, which are columns of its product; and its outputs, of which a thread has OWN neighbours.
constexpr int COLUMNS = ROWS / ROW_GROUPS;
constexpr int OUTPUTS = UP ? COLUMNS / 2 : COLUMNS;
constexpr int OWN = OUTPUTS / 4;
static_assert(COLUMNS == 64 || COLUMNS == 128, "products are 64 or 128 wide");
static_assert(OWN % VEC == 0, "a thread stores 16 bytes at a time");
constexpr int TILE_OUTPUTS = ROW_GROUPS * OUTPUTS;

constexpr int PIECES = DEPTH / VEC;
constexpr uint32 ROW_BYTES = DEPTH * 2, GROUP_BYTES = 8 * ROW_BYTES;
constexpr uint32 PAIR_BYTES = PAIRS * ROW_BYTES, STAGE_BYTES = PAIR_BYTES + ROWS * ROW_BYTES;

// The output of the tile that its weight row stands for, and whether it is what is gated. Columns 8i + 2c and the next are a thread's c.
struct TileRow {
  int output;
  bool is_gated;
  __device__ __forceinline__ explicit TileRow(int row) {
    const int column = row % COLUMNS, eight = column / 8, c = column % 8 / 2;
    output = row / COLUMNS * OUTPUTS + c * OWN + (UP ? eight / 2 : eight) * 2 + column % 2;
    is_gated = UP && eight % 2;
  }
};

// A warpgroup's pairs and its rows of the tile.
struct Part {
  int pair_group, row_group;
  __device__ __forceinline__ Part()
      : pair_group(threadIdx.x / WARPGROUP % PAIR_GROUPS), row_group(threadIdx.x / WARPGROUP / PAIR_GROUPS) {}
};

// PLAIN: without biases, activated by SiLU.
template <bool PLAIN>
__device__ __forceinline__ void store_outputs(const float (&d)[COLUMNS / 2], elem_t* out, const elem_t* bias, const int32* sorted,
                                              const float* weights, const Item& item, int first, int outputs, int activation,
                                              float alpha, float limit) {
  const Part part;
  const int lane = threadIdx.x % WARP, own = first + part.row_group * OUTPUTS + lane % 4 * OWN;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = part.pair_group * 64 + threadIdx.x % WARPGROUP / WARP * 16 + half * 8 + lane / 4;
    if (row >= item.count) continue;
    int64 target = item.first + row;
    float weight = 1;
    if constexpr (!UP) {
      target = load_coherent(sorted + target);
      weight = __uint_as_float(load_coherent(reinterpret_cast<const uint32*>(weights) + target));
    }
#pragma unroll
    for (int vector = 0; vector < OWN / VEC; vector++) {
      const int output = own + vector * VEC;
      if (output >= outputs) break;
      float y[VEC];
#pragma unroll
      for (int i = 0; i < VEC; i++) {
        // Of two columns a thread has 4 sums, those of both halves; gates take turns with what they gate.
        const int pair = (vector * VEC + i) / 2, e = half * 2 + i % 2;
        if constexpr (UP) {
          float gate = d[pair * 8 + e], up = d[pair * 8 + 4 + e];
          if constexpr (PLAIN) {
            y[i] = silu(gate) * up;
          } else {
            if (bias) gate += to_float(bias[output + i]), up += to_float(bias[outputs + output + i]);
            y[i] = activate_pair(gate, up, activation, alpha, limit);
          }
        } else {
          const float added = PLAIN || bias == nullptr ? 0 : to_float(bias[output + i]);
          y[i] = weight * (d[pair * 4 + e] + added);
        }
      }
      store_vec(out + target * outputs + output, y);
    }
  }
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS, 2)
    experts_wgmma(elem_t* out, const elem_t* x, const elem_t* __restrict__ matrices, const elem_t* __restrict__ biases,
                  const int32* sorted, const float* weights, const Item* items, int k, int in_features, int outputs,
                  int activation, float alpha, float limit) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const int tid = threadIdx.x;
  GRID_DEPENDENCY_LAUNCH();
  GRID_DEPENDENCY_WAIT();
  const Item item = load_item(items, blockIdx.y);
  if (item.count == 0) return;

  const int first = blockIdx.x * TILE_OUTPUTS;
  const int64 expert_row = static_cast<int64>(item.expert) * (UP ? 2 * outputs : outputs);

  // Each thread copies a piece of every COPY_ROWSth row. Rows past the end are zeros.
  constexpr int COPY_ROWS = TILE_THREADS / PIECES, PAIR_COPIES = PAIRS / COPY_ROWS, ROW_COPIES = ROWS / COPY_ROWS;
  const int piece = tid % PIECES, copy_row = tid / PIECES;
  const elem_t* from_pairs[PAIR_COPIES];
  const elem_t* from_rows[ROW_COPIES];
#pragma unroll
  for (int i = 0; i < PAIR_COPIES; i++) {
    const int row = copy_row + i * COPY_ROWS;
    from_pairs[i] = nullptr;
    if (row >= item.count) continue;
    const int source = UP ? load_coherent(sorted + item.first + row) / k : item.first + row;
    from_pairs[i] = x + static_cast<int64>(source) * in_features + piece * VEC;
  }
#pragma unroll
  for (int i = 0; i < ROW_COPIES; i++) {
    const TileRow row(copy_row + i * COPY_ROWS);
    const int output = first + row.output;
    from_rows[i] = output >= outputs ? nullptr
                                     : matrices + (expert_row + output + (row.is_gated ? outputs : 0)) * in_features + piece * VEC;
  }
  const uint32 base = shared_address(shared);
  const auto copy_chunk = [&](int chunk) {
    const uint32 stage = base + chunk % STAGES * STAGE_BYTES;
    const int at = chunk * DEPTH;
    const bool is_inside = at + piece * VEC < in_features;
    const auto copy = [&](uint32 matrix, int row, const elem_t* from) {
      const bool valid = is_inside && from != nullptr;
      cp_async16(matrix + matrix_offset(row, piece, GROUP_BYTES), valid ? from + at : x, valid);
    };
#pragma unroll
    for (int i = 0; i < PAIR_COPIES; i++) copy(stage, copy_row + i * COPY_ROWS, from_pairs[i]);
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++) copy(stage + PAIR_BYTES, copy_row + i * COPY_ROWS, from_rows[i]);
  };
  const int chunks = ceil_div(in_features, DEPTH);
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) {
    if (i < chunks) copy_chunk(i);
    cp_async_commit();
  }

  const Part part;
  float d[COLUMNS / 2];
#pragma unroll
  for (int i = 0; i < COLUMNS / 2; i++) d[i] = 0;
  wgmma_pin(d);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    // The chunk is there, and visible to tensor cores; and all have multiplied the one before, whose stage is the next to be written.
    cp_async_wait<STAGES - 2>();
    async_proxy_fence();
    __syncthreads();
    const uint32 stage = base + chunk % STAGES * STAGE_BYTES;
    const uint64 pairs = matrix_descriptor(stage + part.pair_group * 64 * ROW_BYTES, GROUP_BYTES),
                 rows = matrix_descriptor(stage + PAIR_BYTES + part.row_group * COLUMNS * ROW_BYTES, GROUP_BYTES);
    wgmma_fence();
    // A descriptor counts in units of 16 bytes.
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++) wgmma_shared(d, pairs + i * 2, rows + i * 2, true);
    wgmma_commit();
    if (chunk + STAGES - 1 < chunks) copy_chunk(chunk + STAGES - 1);
    cp_async_commit();
    wgmma_wait_pending<0>();
  }
  wgmma_wait<0>(d);

  // Most models' experts have no biases and SiLU: nothing else is decided for each output.
  const elem_t* const bias = biases == nullptr ? nullptr : biases + expert_row;
  if (bias == nullptr && (!UP || (limit <= 0 && activation == SILU)))
    store_outputs<true>(d, out, bias, sorted, weights, item, first, outputs, activation, alpha, limit);
  else
    store_outputs<false>(d, out, bias, sorted, weights, item, first, outputs, activation, alpha, limit);
}
