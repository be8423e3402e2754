// Products of a tile of weight rows by a tile of tokens on Hopper, as linear_wgmma.cu describes them: rings in shared memory that
// two warps keep filled, warpgroups that multiply, and sums that CTAs which share a tile exchange.
#pragma once
#include "cluster.cuh"
#include "tensor_map.cuh"
#include "wgmma_sizes.cuh"

#if !defined(GROUPS) || !defined(TOKENS) || !defined(K_BLOCKS) || !defined(WEIGHT_STAGES) || !defined(X_STAGES)
#error "GROUPS, TOKENS, K_BLOCKS, WEIGHT_STAGES and X_STAGES come from src/backend/cuda/ops/wgmma-linear.ts"
#endif
#if !defined(ROW_CLUSTER) || !defined(TOKEN_CLUSTER) || !defined(SPLITS)
#error "ROW_CLUSTER, TOKEN_CLUSTER and SPLITS come from src/backend/cuda/ops/wgmma-linear.ts"
#endif
#if !defined(NORM) || !defined(MAX_K) || !defined(SQUARERS) || !defined(QUANTISED)
#error "NORM, MAX_K, SQUARERS and QUANTISED come from src/backend/cuda/ops/wgmma-linear.ts"
#endif

constexpr int ROWS = 64 * GROUPS;
constexpr int CONSUMER_WARPS = 4 * GROUPS, CONSUMERS = CONSUMER_WARPS * WARP;
constexpr int SQUARE_WARPS = NORM ? SQUARERS : 0;
// Columns of a stage: K_BLOCKS swizzled rows of 64.
constexpr int K_TILE = 64 * K_BLOCKS, K_STEPS = 64 / 16;
// Blocks of 8 tokens; block i is finished by split i % SPLITS of those that share a tile.
constexpr int BLOCKS = TOKENS / 8, OWN_BLOCKS = ceil_div(BLOCKS, SPLITS);
constexpr uint32 WEIGHT_BYTES = ROWS * 128, X_BYTES = TOKENS * 128;  // of a block of columns
constexpr uint32 HALF_BYTES = ROWS * 64;  // of half of it, which a block of a strip has (quantised.cuh)
constexpr bool CLUSTERED = ROW_CLUSTER * TOKEN_CLUSTER * SPLITS > 1;
// CTAs that find the squares of the same tokens' x: each of a part of the columns.
constexpr int PARTS = NORM ? ROW_CLUSTER * SPLITS : 1;
static_assert(TOKENS % 16 == 0, "a tile has whole pairs of blocks");
static_assert(TOKENS % (8 * ROW_CLUSTER) == 0, "each CTA fetches whole groups of 8 tokens");
static_assert(ROWS % (16 * TOKEN_CLUSTER) == 0, "each CTA fetches whole groups of 16 weight rows");
static_assert(ROW_CLUSTER * TOKEN_CLUSTER * SPLITS <= 8, "a cluster has at most 8 CTAs");
static_assert(WEIGHT_STAGES >= 2 && X_STAGES >= 2, "a stage is filled while another is used");

#if defined(TILE_FLOAT8)
static_assert(!NORM && !QUANTISED, "8-bit floats go to the tensor cores as they are");
#endif

#if QUANTISED
#include "quantised_stage.cuh"
#else
constexpr uint32 WEIGHT_ARRIVALS = 1;
#endif

struct TileShared {
#if QUANTISED
  unsigned char codes[WEIGHT_STAGES][STAGE_BYTES];
  // Boxes of x are swizzled by their addresses.
  alignas(1024)
#else
  unsigned char weights[WEIGHT_STAGES][K_BLOCKS][WEIGHT_BYTES];
#endif
  unsigned char x[X_STAGES][K_BLOCKS][X_BYTES];
#if SPLITS > 1
  float4 exchange[SPLITS - 1][OWN_BLOCKS][CONSUMERS];  // of the other splits, in their order
#endif
#if defined(TILE_FLOAT8)
  float x_factors[TOKENS];
#endif
#if NORM
  alignas(16) elem_t gamma[MAX_K];
  float squares[PARTS][TOKENS];
  uint64 gamma_full;
#endif
  uint64 weights_full[WEIGHT_STAGES], weights_empty[WEIGHT_STAGES], x_full[X_STAGES], x_empty[X_STAGES];
  uint64 exchanged;  // sums and squares of other CTAs have arrived
};

// By one thread; a __syncthreads must follow, and a wait for the cluster before anything reaches another CTA.
__device__ __forceinline__ void init_barriers(TileShared& shared, uint32 split) {
  for (int i = 0; i < WEIGHT_STAGES; i++) {
    barrier_init(shared_address(&shared.weights_full[i]), WEIGHT_ARRIVALS);
    barrier_init(shared_address(&shared.weights_empty[i]), CONSUMER_WARPS * TOKEN_CLUSTER);
  }
  for (int i = 0; i < X_STAGES; i++) {
    barrier_init(shared_address(&shared.x_full[i]), 1);
    barrier_init(shared_address(&shared.x_empty[i]), (CONSUMER_WARPS + SQUARE_WARPS) * ROW_CLUSTER);
  }
  barrier_init(shared_address(&shared.exchanged), 1);
#if NORM
  barrier_init(shared_address(&shared.gamma_full), 1);
#endif
  barrier_init_fence();
  constexpr uint32 SQUARE_BYTES = NORM ? PARTS * TOKENS * sizeof(float) : 0;
  const uint32 own_blocks = (BLOCKS - split + SPLITS - 1) / SPLITS;
  barrier_expect(shared_address(&shared.exchanged), SQUARE_BYTES + (SPLITS - 1) * own_blocks * CONSUMERS * sizeof(float4));
}

// The stage that a ring of COUNT is at, and the number of fills of its stages that are to come.
template <int COUNT>
struct Position {
  int fills;
  int stage = 0;
  uint32 phase = 0;
  __device__ __forceinline__ void advance() {
    fills--;
    if (++stage == COUNT) stage = 0, phase ^= 1;
  }
  // A stage that was read is given back, by each warp to the PEERS CTAs that fill it, ranks first, first + step, …; if it is
  // filled again.
  template <int PEERS>
  __device__ __forceinline__ void give_back(uint64* empty, uint32 first, uint32 step) const {
    if (fills <= COUNT) return;
    const uint32 lane = threadIdx.x % WARP, barrier = shared_address(empty);
    if constexpr (PEERS == 1) {
      if (lane == 0) barrier_arrive(barrier);
    } else {
      if (lane < PEERS) barrier_arrive_there(address_in_rank(barrier, first + lane * step));
    }
  }
};

// This CTA's place among those of its cluster.
struct Place {
  uint32 row_share, token_share, split;

  __device__ __forceinline__ static uint32 rank(uint32 row, uint32 token, uint32 split) {
    return row + (token + split * TOKEN_CLUSTER) * ROW_CLUSTER;
  }
  // The first of the ranks that have the same weights, ROW_CLUSTER apart, and of those that have the same x, one after another.
  __device__ __forceinline__ uint32 weights_first() const { return rank(row_share, 0, split); }
  __device__ __forceinline__ uint32 x_first() const { return rank(0, token_share, split); }
};

// This CTA's share of the work: row tiles first_tile, first_tile + tile_step, …; columns of all tiles, in tiles of K_TILE.
struct Work {
  int first_tile, tile_step, tiles, token0, first_k, k_tiles;

  __device__ __forceinline__ int fills() const { return ceil_div(tiles - first_tile, tile_step) * k_tiles; }
};

// ── warps that fetch ─────────────────────────────────────────────────────────────────────────────────────────────────

#if !QUANTISED
__device__ __forceinline__ void fetch_weights(TileShared& shared, const Work& work, const TensorMap* map, uint32 share,
                                              uint16 ranks) {
  Position<WEIGHT_STAGES> at = {work.fills()};
  for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step)
#pragma unroll 1
    for (int k = 0; k < work.k_tiles; k++, at.advance()) {
      barrier_wait(shared_address(&shared.weights_empty[at.stage]), at.phase ^ 1);
      if (threadIdx.x % WARP == 0) {
        const uint32 full = shared_address(&shared.weights_full[at.stage]);
        barrier_expect(full, K_BLOCKS * WEIGHT_BYTES);
        const int group = (tile * TOKEN_CLUSTER + share) * (ROWS / 16 / TOKEN_CLUSTER);
#if defined(TILE_FLOAT8)
#pragma unroll
        for (int half = 0; half < 2 * K_BLOCKS; half++) {
          const uint32 target =
              shared_address(shared.weights[at.stage][half / 2]) + (half % 2 * TOKEN_CLUSTER + share) * (HALF_BYTES / TOKEN_CLUSTER);
          const int block = (work.first_k + k) * K_BLOCKS * 2 + half;
          if (TOKEN_CLUSTER > 1)
            copy_strips_multicast(target, map, full, block, group, ranks);
          else
            copy_strips(target, map, full, block, group);
        }
#else
#pragma unroll
        for (int block = 0; block < K_BLOCKS; block++) {
          const uint32 target = shared_address(shared.weights[at.stage][block]) + share * (WEIGHT_BYTES / TOKEN_CLUSTER);
          const int column = (work.first_k + k) * K_TILE + block * 64;
          if (TOKEN_CLUSTER > 1)
            copy_box_multicast<4>(target, map, full, column, group, ranks);
          else
            copy_box<4>(target, map, full, column, group);
        }
#endif
      }
      __syncwarp();
    }
}

#endif

__device__ __forceinline__ void fetch_x(TileShared& shared, const Work& work, const TensorMap* map, uint32 share,
                                        uint16 ranks) {
  Position<X_STAGES> at = {work.fills()};
  for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step)
#pragma unroll 1
    for (int k = 0; k < work.k_tiles; k++, at.advance()) {
      barrier_wait(shared_address(&shared.x_empty[at.stage]), at.phase ^ 1);
      if (threadIdx.x % WARP == 0) {
        const uint32 full = shared_address(&shared.x_full[at.stage]);
        barrier_expect(full, K_BLOCKS * X_BYTES);
#pragma unroll
        for (int block = 0; block < K_BLOCKS; block++) {
          const uint32 target = shared_address(shared.x[at.stage][block]) + share * (X_BYTES / ROW_CLUSTER);
          const int column = (work.first_k + k) * K_TILE + block * 64, row = work.token0 + share * (TOKENS / ROW_CLUSTER);
          if (ROW_CLUSTER > 1)
            copy_box_multicast<2>(target, map, full, column, row, ranks);
          else
            copy_box<2>(target, map, full, column, row);
        }
      }
      __syncwarp();
    }
}

#if NORM
// Sums of squares of the tokens' x over the columns of every ROW_CLUSTERth stage, for all ranks of the same tokens. A token has
// LANES lanes, which take its 16-byte pieces in turns.
__device__ __forceinline__ void find_squares(TileShared& shared, const Work& work, const Place& place) {
  const uint32 first_rank = place.x_first();
  constexpr int ALL = SQUARE_WARPS * WARP, LANES = TOKENS * 4 <= ALL ? 4 : TOKENS * 2 <= ALL ? 2 : 1;
  constexpr int STEP = ALL / LANES, TURNS = ceil_div(TOKENS, STEP);
  const int thread = threadIdx.x - CONSUMERS - 2 * WARP, token = thread / LANES, lane = thread % LANES;
  float sum[TURNS][2] = {};
  Position<X_STAGES> at = {work.fills()};
  for (int tile = work.first_tile; tile < work.tiles; tile += work.tile_step) {
    const bool first = tile == work.first_tile;
#pragma unroll 1
    for (int k = 0; k < work.k_tiles; k++, at.advance()) {
      barrier_wait(shared_address(&shared.x_full[at.stage]), at.phase);
      if (first && k % ROW_CLUSTER == place.row_share) {
#pragma unroll
        for (int turn = 0; turn < TURNS; turn++)
          if (token + turn * STEP < TOKENS)
#pragma unroll
            for (int block = 0; block < K_BLOCKS; block++)
#pragma unroll
              for (int piece = lane; piece < 8; piece += LANES) {
                const int row = token + turn * STEP;
                float x[VEC];
                unpack(load16(shared.x[at.stage][block] + row * 128 + (piece ^ row % 8) * 16), x);
#pragma unroll
                for (int i = 0; i < VEC; i++) sum[turn][i % 2] += x[i] * x[i];
              }
        async_proxy_fence();
        __syncwarp();
      }
      at.give_back<ROW_CLUSTER>(&shared.x_empty[at.stage], first_rank, 1);
    }
    if (!first) continue;
#pragma unroll
    for (int turn = 0; turn < TURNS; turn++) {
      const int row = token + turn * STEP;
      const float total = warp_sum<LANES>(sum[turn][0] + sum[turn][1]);
      const uint32 target = shared_address(&shared.squares[place.split * ROW_CLUSTER + place.row_share][row]);
      if (row < TOKENS && lane == 0)
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
          const uint32 rank = place.rank(part % ROW_CLUSTER, place.token_share, part / ROW_CLUSTER);
          store_rank(address_in_rank(target, rank), total, address_in_rank(shared_address(&shared.exchanged), rank));
        }
    }
    __syncwarp();
  }
}
#endif

#if NORM
// 1 / RMS of tokens 2c and 2c + 1 of this CTA's blocks, once all squares are there.
__device__ __forceinline__ void norm_factors(float (&factor)[OWN_BLOCKS][2], const TileShared& shared, int split, int columns,
                                             float eps) {
#pragma unroll
  for (int i = 0; i < OWN_BLOCKS; i++)
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float total = 0;
      const int token = min(i * SPLITS + split, BLOCKS - 1) * 8 + static_cast<int>(threadIdx.x) % 4 * 2 + j;
#pragma unroll
      for (int part = 0; part < PARTS; part++) total += shared.squares[part][token];
      factor[i][j] = rsqrtf(total / columns + eps);
    }
}
#endif

// ── warpgroups that multiply ─────────────────────────────────────────────────────────────────────────────────────────

// multiply() adds the warpgroup's part of the product over this CTA's columns to d, which starts from zeros: products whose
// accumulator starts undefined run one after another by CUDA 12's compiler.

struct Rings {
  Position<WEIGHT_STAGES> weights;
  Position<X_STAGES> x;
};

#if NORM
// A warp's 16 weight rows of a block, times gamma, as wgmma's A.
template <int BLOCK>
__device__ __forceinline__ void take_weights(uint32 (&a)[K_STEPS][4], TileShared& shared, Rings& at, const Place& place, int k) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const uint32 row = shared_address(shared.weights[at.weights.stage][BLOCK]) + (warp * 16 + lane % 16) * 128;
  const elem_t* gamma = shared.gamma + k * K_TILE + BLOCK * 64 + lane % 4 * 2;
  uint32 scale[K_STEPS][2];
#pragma unroll
  for (int i = 0; i < K_STEPS; i++) {
    scale[i][0] = *reinterpret_cast<const uint32*>(gamma + i * 16);
    scale[i][1] = *reinterpret_cast<const uint32*>(gamma + i * 16 + 8);
  }
  if (BLOCK == 0) barrier_wait(shared_address(&shared.weights_full[at.weights.stage]), at.weights.phase);
#pragma unroll
  for (int i = 0; i < K_STEPS; i++) ldmatrix_x4(a[i], row + (((i * 2 + lane / 16) ^ lane % 8) * 16));
#pragma unroll
  for (int i = 0; i < K_STEPS; i++) {
    a[i][0] = multiply2(a[i][0], scale[i][0]), a[i][1] = multiply2(a[i][1], scale[i][0]);
    a[i][2] = multiply2(a[i][2], scale[i][1]), a[i][3] = multiply2(a[i][3], scale[i][1]);
  }
  if (BLOCK < K_BLOCKS - 1) return;
  if (at.weights.fills > WEIGHT_STAGES) {
    async_proxy_fence();
    __syncwarp();
  }
  at.weights.give_back<TOKEN_CLUSTER>(&shared.weights_empty[at.weights.stage], place.weights_first(), ROW_CLUSTER);
  at.weights.advance();
}

__device__ __forceinline__ void multiply(float (&d)[TOKENS / 2], TileShared& shared, Rings& at, const Place& place, int first_k,
                                         int k_tiles) {
  // Of the block that is multiplied and of the next one.
  uint32 a[2][K_STEPS][4];
  constexpr int LAST = K_BLOCKS - 1;
  Position<X_STAGES> before = at.x;
  wgmma_pin(d);
  const auto product = [&](const uint32(&now)[K_STEPS][4], int block, bool started) {
    if (block == 0) barrier_wait(shared_address(&shared.x_full[at.x.stage]), at.x.phase);
    const uint32 x = shared_address(shared.x[at.x.stage][block]);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < K_STEPS; i++) wgmma(d, now[i], matrix_descriptor(x + i * 32, 1024));
    wgmma_commit();
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (block == 0 && started) before.give_back<ROW_CLUSTER>(&shared.x_empty[before.stage], place.x_first(), 1);
    if (block == LAST) before = at.x, at.x.advance();
  };
  take_weights<0>(a[0], shared, at, place, first_k);
#pragma unroll 1
  for (int k = 0; k < k_tiles; k += 2 / K_BLOCKS) {
    product(a[0], 0, k > 0);
    if (K_BLOCKS == 2) {
      take_weights<LAST>(a[1], shared, at, place, first_k + k);
      product(a[1], LAST, true);
      if (k + 1 < k_tiles) take_weights<0>(a[0], shared, at, place, first_k + k + 1);
    } else if (k + 1 < k_tiles) {
      take_weights<0>(a[1], shared, at, place, first_k + k + 1);
      product(a[1], 0, true);
      if (k + 2 < k_tiles) take_weights<0>(a[0], shared, at, place, first_k + k + 2);
    }
  }
  wgmma_wait<0>(d);
  before.give_back<ROW_CLUSTER>(&shared.x_empty[before.stage], place.x_first(), 1);
}
#elif !QUANTISED
__device__ __forceinline__ void multiply(float (&d)[TOKENS / 2], TileShared& shared, Rings& at, const Place& place, int first_k,
                                         int k_tiles) {
  const int group = threadIdx.x / (4 * WARP);
  Rings before = at;
  wgmma_pin(d);
  const auto give_back = [&] {
    before.weights.give_back<TOKEN_CLUSTER>(&shared.weights_empty[before.weights.stage], place.weights_first(), ROW_CLUSTER);
    before.x.give_back<ROW_CLUSTER>(&shared.x_empty[before.x.stage], place.x_first(), 1);
  };
#pragma unroll 1
  for (int k = 0; k < k_tiles; k++) {
    barrier_wait(shared_address(&shared.weights_full[at.weights.stage]), at.weights.phase);
    barrier_wait(shared_address(&shared.x_full[at.x.stage]), at.x.phase);
    wgmma_fence();
#pragma unroll
    for (int block = 0; block < K_BLOCKS; block++) {
      const uint32 weights = shared_address(shared.weights[at.weights.stage][block]);
      const uint32 x = shared_address(shared.x[at.x.stage][block]);
#pragma unroll
      for (int i = 0; i < K_STEPS; i++) {
#if defined(TILE_FLOAT8)
        const uint64 a = matrix_descriptor64(weights + i / 2 * HALF_BYTES + group * 64 * 64 + i % 2 * 32);
#else
        const uint64 a = matrix_descriptor(weights + group * 64 * 128 + i * 32, 1024);
#endif
        wgmma(d, a, matrix_descriptor(x + i * 32, 1024));
      }
    }
    wgmma_commit();
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
    if (k > 0) give_back();
    before = at;
    at.weights.advance(), at.x.advance();
  }
  wgmma_wait<0>(d);
  give_back();
}
#endif

// The finished sums of this CTA's blocks, from its own of all blocks and those of the other splits, added in the order of the
// splits. Once a CTA: a second tile would find the first one's.
__device__ __forceinline__ void exchange_sums(float (&y)[OWN_BLOCKS][4], const float (&d)[TOKENS / 2], TileShared& shared,
                                              const Place& place) {
  const uint32 split = SPLITS > 1 ? place.split : 0;
#pragma unroll
  for (int block = 0; block < BLOCKS; block++) {
    const uint32 owner = block % SPLITS;
    if (owner == split) {
#pragma unroll
      for (int j = 0; j < 4; j++) y[block / SPLITS][j] = d[block * 4 + j];
#if SPLITS > 1
    } else {
      const uint32 rank = Place::rank(place.row_share, place.token_share, owner), slot = split > owner ? split - 1 : split;
      store_rank(address_in_rank(shared_address(&shared.exchange[slot][block / SPLITS][threadIdx.x]), rank),
                 make_float4(d[block * 4], d[block * 4 + 1], d[block * 4 + 2], d[block * 4 + 3]),
                 address_in_rank(shared_address(&shared.exchanged), rank));
#endif
    }
  }
  if (SPLITS > 1 || NORM) barrier_wait_cluster(shared_address(&shared.exchanged), 0);
#if SPLITS > 1
#pragma unroll
  for (int i = 0; i < OWN_BLOCKS; i++) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (uint32 from = 0; from < SPLITS; from++) {
      float4 part = make_float4(y[i][0], y[i][1], y[i][2], y[i][3]);
      if (from != split) part = shared.exchange[from > split ? from - 1 : from][i][threadIdx.x];
      sum.x += part.x, sum.y += part.y, sum.z += part.z, sum.w += part.w;
    }
    y[i][0] = sum.x, y[i][1] = sum.y, y[i][2] = sum.z, y[i][3] = sum.w;
  }
#endif
}
