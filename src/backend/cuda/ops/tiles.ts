import { WARP } from "./kernel-variants.ts";

/** Logits of a tile. */
export const LOGIT_TILE = 512;
/** Tiles of a block of the tile kernels: one a warp. */
export const TILES_PER_BLOCK = 8;
export const TILE_THREADS = TILES_PER_BLOCK * WARP;
/** Threads of the kernels that take a row a block. */
export const ROW_THREADS = 512;

/** Constants of logits.cuh. */
export const LOGIT_CONSTANTS = { LOGIT_TILE, TILE_THREADS, ROW_THREADS } as const;

/** Bytes of a tile's statistics; tile_stats.cuh. */
export const TILE_STATS_BYTES = 16;
