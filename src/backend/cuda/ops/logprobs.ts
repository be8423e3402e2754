import type { LogprobTensors } from "../../backend.ts";
import { checkLogprobs } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { LOGIT_CONSTANTS, LOGIT_TILE, ROW_THREADS, TILE_THREADS, TILES_PER_BLOCK } from "./tiles.ts";

/** Bytes of a tile's maximum and sum. */
const TILE_SUM_BYTES = 8;

const SOURCE = { file: "logprobs.cu", constants: { ...LOGIT_CONSTANTS, TILE_SUM_BYTES } } as const;
const LOGPROB_TILES = {
  ...SOURCE,
  entry: "logprob_tiles",
  pointers: ["stats", "logits", "rows"],
  scalars: ["vocab", "tiles"],
} as const;
const LOGPROB_ROWS = {
  ...SOURCE,
  entry: "logprob_rows",
  pointers: ["chosen", "ranks", "top_ids", "top_logprobs", "logits", "stats", "tokens", "rows"],
  scalars: ["vocab", "tiles", "top"],
} as const;

/** Log-probabilities of logits. */
export class LogprobOps {
  readonly #tiles: KernelVariants<typeof LOGPROB_TILES>;
  readonly #rows: KernelVariants<typeof LOGPROB_ROWS>;
  readonly #scratch: Scratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    options: KernelOptions = {},
  ) {
    this.#tiles = new KernelVariants(library, LOGPROB_TILES, "float32", options);
    this.#rows = new KernelVariants(library, LOGPROB_ROWS, "float32", options);
    this.#scratch = new Scratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#tiles.unit()];
  }

  /** See `Backend.logprobs`. A token outside the vocabulary (−1, of a failed row) has NaN and rank −1. */
  logprobs(stream: number, out: LogprobTensors, logits: Tensor, tokens: Tensor, rows?: Tensor): void {
    const { rows: count, vocab, top } = checkLogprobs(out, logits, tokens, rows);
    if (count === 0) return;
    const tiles = Math.ceil(vocab / LOGIT_TILE);
    const stats = this.#scratch.atLeast(count * tiles * TILE_SUM_BYTES);
    const blocks = Math.ceil(tiles / TILES_PER_BLOCK);
    const ofTiles = { stats, logits, rows: rows ?? null, vocab, tiles };
    this.#tiles.get().launch(stream, blocks, count, 1, TILE_THREADS, 0, ofTiles);
    this.#rows.get().launch(stream, count, 1, 1, ROW_THREADS, 4 * tiles, {
      chosen: out.chosen,
      ranks: out.ranks,
      top_ids: out.topIds,
      top_logprobs: out.topLogprobs,
      logits,
      stats,
      tokens,
      rows: rows ?? null,
      vocab,
      tiles,
      top,
    });
  }
}
