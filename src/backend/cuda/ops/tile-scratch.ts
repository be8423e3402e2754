import type { DeviceBuffer } from "../../tensor.ts";

/** TILE in logits.cuh: tokens of a tile. */
export const TILE = 512;
/** Tiles of a block of the tile kernels: one a warp. */
export const TILES_PER_BLOCK = 8;
export const TILE_THREADS = TILES_PER_BLOCK * 32;
/** Threads of the kernels that take a row a block. */
export const ROW_THREADS = 512;

/**
 * Memory for the tiles' statistics, between a tile kernel and the row kernel after it. Grown buffers are kept: a
 * captured graph may hold their addresses. Growing allocates, which capturing forbids, so run the op once before.
 */
export class TileScratch {
  #current: DeviceBuffer | undefined;

  constructor(private readonly allocate: (byteLength: number) => DeviceBuffer) {}

  /** The address of at least `byteLength` bytes. */
  address(byteLength: number): number {
    if (this.#current === undefined || this.#current.byteLength < byteLength)
      this.#current = this.allocate(byteLength);
    return this.#current.address;
  }
}
