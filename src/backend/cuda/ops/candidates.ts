import { type DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { TILE_STATS_BYTES, TILE_THREADS, TILES_PER_BLOCK } from "./tiles.ts";

const SOURCE = { file: "candidates.cu", constants: { TILE_STATS_BYTES, TILE_THREADS } } as const;
const BEST_OF_KEYS = {
  ...SOURCE,
  entry: "best_of_keys",
  pointers: ["best", "keys"],
  scalars: ["rows", "parts"],
} as const;
const BEST_OF_TILES = {
  ...SOURCE,
  entry: "best_of_tiles",
  pointers: ["best", "stats"],
  scalars: ["rows", "tiles"],
} as const;

/** Words of a key. */
const KEY_WORDS = 2;
/** Rows that there is always room for: kernels that draw by themselves take as many at once. */
const LEAST_ROWS = 256;

/** The way by which the ranks that a vocabulary is divided among show each other what they would draw. */
export interface CandidateExchange {
  readonly size: number;
  /** See `Backend.gatherColumns`, of any 4-byte dtype. */
  readonly gatherColumns: (out: Tensor, part: Tensor) => void;
}

/** Candidates of all ranks for each row: keys uint64 [rows, ranks], of which the greatest is drawn. */
export class Candidates {
  readonly #bestOfKeys: KernelVariants<typeof BEST_OF_KEYS>;
  readonly #bestOfTiles: KernelVariants<typeof BEST_OF_TILES>;
  readonly #own: Scratch;
  readonly #all: Scratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    private readonly ranks: CandidateExchange,
    options: KernelOptions,
  ) {
    this.#bestOfKeys = new KernelVariants(library, BEST_OF_KEYS, "float32", options);
    this.#bestOfTiles = new KernelVariants(library, BEST_OF_TILES, "float32", options);
    this.#own = new Scratch(allocate);
    this.#all = new Scratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#bestOfKeys.unit()];
  }

  /** From this rank's keys uint64 [rows, parts], which are 0 afterwards. */
  ofKeys(stream: number, keys: DeviceBuffer, rows: number, parts: number): DeviceBuffer {
    const best = this.#ownOf(rows);
    this.#bestOfKeys
      .get()
      .launch(stream, blocksOf(rows), 1, 1, TILE_THREADS, 0, { best: best.buffer, keys, rows, parts });
    return this.#exchange(best);
  }

  /** From the statistics of this rank's logits, of [rows, tiles]. */
  ofTiles(stream: number, stats: DeviceBuffer, rows: number, tiles: number): DeviceBuffer {
    const best = this.#ownOf(rows);
    this.#bestOfTiles
      .get()
      .launch(stream, blocksOf(rows), 1, 1, TILE_THREADS, 0, { best: best.buffer, stats, rows, tiles });
    return this.#exchange(best);
  }

  #ownOf(rows: number): Tensor {
    const buffer = this.#own.atLeast(4 * KEY_WORDS * Math.max(rows, LEAST_ROWS));
    return new Tensor(buffer, "uint32", [rows, KEY_WORDS]);
  }

  #exchange(best: Tensor): DeviceBuffer {
    const rows = best.dim(0);
    const words = KEY_WORDS * this.ranks.size;
    const buffer = this.#all.atLeast(4 * words * Math.max(rows, LEAST_ROWS));
    this.ranks.gatherColumns(new Tensor(buffer, "uint32", [rows, words]), best);
    return buffer;
  }
}

function blocksOf(rows: number): number {
  return Math.ceil(rows / TILES_PER_BLOCK);
}
