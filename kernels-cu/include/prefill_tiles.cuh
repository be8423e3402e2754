// Tiles of attention_prefill.cu: how its threads share them, and their rows in shared memory.
#pragma once
#include "attention.cuh"

#if !defined(PREFILL_ROWS) || !defined(PREFILL_WARPS) || !defined(PREFILL_KEYS) || !defined(PREFILL_PADDING)
#error "PREFILL_ROWS, PREFILL_WARPS, PREFILL_KEYS and PREFILL_PADDING come from src/backend/cuda/ops/prefill-attention.ts"
#endif

constexpr int WARPS = PREFILL_WARPS;
constexpr int THREADS = WARPS * WARP;
constexpr int MMA_ROWS = PREFILL_ROWS / (WARPS * 16);
constexpr int KEYS = PREFILL_KEYS;
constexpr int KEY_TILES = KEYS / 8;
constexpr int STRIDE = HEAD_DIM + PREFILL_PADDING;
static_assert(MMA_ROWS * WARPS * 16 == PREFILL_ROWS, "PREFILL_ROWS must be a multiple of 16 rows a warp");
static_assert(KEYS % 16 == 0, "PREFILL_KEYS must be a multiple of 16, the depth of a product");
static_assert(PREFILL_PADDING % VEC == 0, "PREFILL_PADDING must keep rows aligned to 16-byte vectors");

// A quad copies one row of D elements, 16 bytes a lane at a time; THREADS / 4 rows are under way at once.
constexpr int ROW_COPIES = HEAD_DIM / 32;
constexpr int ROWS_AT_ONCE = THREADS / 4;
constexpr int KEY_PASSES = KEYS / ROWS_AT_ONCE;
static_assert(KEYS % ROWS_AT_ONCE == 0 && PREFILL_ROWS % ROWS_AT_ONCE == 0, "every thread copies the same number of rows");

using Scores = float[MMA_ROWS][KEY_TILES][4];
using Output = float[MMA_ROWS][HEAD_DIM / 8][4];
