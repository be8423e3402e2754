import type { DeviceBuffer } from "../../tensor.ts";
import { WARP } from "./kernel-variants.ts";

/** Logits of a tile. */
export const LOGIT_TILE = 512;
/** Tiles of a block of the tile kernels: one a warp. */
export const TILES_PER_BLOCK = 8;
export const TILE_THREADS = TILES_PER_BLOCK * WARP;
/** Threads of the kernels that take a row a block. */
export const ROW_THREADS = 512;

/** What logits.cuh is told. */
export const LOGIT_CONSTANTS = { LOGIT_TILE, TILE_THREADS, ROW_THREADS } as const;

/**
 * Memory for the tiles' statistics, between a tile kernel and the row kernel after it. Grown buffers are kept: a
 * captured graph may hold their addresses. Growing allocates, which capturing forbids, so run the op once before.
 */
export class TileScratch {
  #current: DeviceBuffer | undefined;

  constructor(private readonly allocate: (byteLength: number) => DeviceBuffer) {}

  /** At least `byteLength` bytes. */
  atLeast(byteLength: number): DeviceBuffer {
    if (this.#current === undefined || this.#current.byteLength < byteLength)
      this.#current = this.allocate(byteLength);
    return this.#current;
  }
}
