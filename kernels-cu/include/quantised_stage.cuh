// A stage of quantised weights for linear_tile.cuh: codes of K_TILE columns of a tile's strips, with their scales and zero points.
#pragma once
#include "quantised.cuh"

#if !defined(SUB)
#error "SUB comes from src/backend/cuda/ops/quantised-wgmma.ts"
#endif
static_assert(K_BLOCKS == 2, "a stage has whole blocks of 4 bits");

constexpr bool IN_STAGES = SCALES != ROW_FLOATS;
// Blocks and scales of a row in a stage; columns between changes of the scale are SUB.
constexpr int STAGE_BLOCKS = K_TILE / BLOCK, SUBS = K_TILE / SUB, STAGE_GROUPS = SUBS;
constexpr int STRIPS = ROWS / STRIP;
constexpr int CODE_BYTES = STAGE_BLOCKS * BLOCK_BYTES * STRIP;
constexpr int SCALE_BYTES = STEPPED ? STAGE_GROUPS * STRIP * FACTORS : GROUPED ? STAGE_GROUPS * STRIP * 2 : IN_STAGES ? 4 : 0;
constexpr int ZERO_BYTES = ZEROS ? STAGE_GROUPS * STRIP : 0;
// Steps of a row's superblock. A stage is of one.
constexpr int STEP_BYTES = SUPERBLOCK / SUB * FACTORS;
constexpr int UNIT_BYTES = STEPPED ? STRIP * 2 * FACTORS : 0;
static_assert(!STEPPED || SUPERBLOCK % K_TILE == 0, "a stage is of one superblock");
// The copy engine's boxes begin at multiples of 128 bytes.
constexpr int STAGE_BYTES = ceil_div(STRIPS * (CODE_BYTES + SCALE_BYTES + ZERO_BYTES + UNIT_BYTES), 128) * 128;
static_assert(SUBS * SUB == K_TILE && SUB % 16 == 0, "scales change between steps of 16 columns");
static_assert(GROUPED || STEPPED || SUBS == 1, "blocks have one scale");
// A copy engine's bytes, and every lane's copies of scales.
constexpr uint32 WEIGHT_ARRIVALS = 1 + (IN_STAGES ? WARP : 0);
