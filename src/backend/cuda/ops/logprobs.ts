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
  pointers: ["stats", "logits"],
  scalars: ["vocab", "tiles"],
} as const;
const LOGPROB_ROWS = {
  ...SOURCE,
  entry: "logprob_rows",
  pointers: ["chosen", "ranks", "top_ids", "top_logprobs", "logits", "stats", "tokens"],
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
  logprobs(stream: number, out: LogprobTensors, logits: Tensor, tokens: Tensor): void {
    const { rows, vocab, top } = checkLogprobs(out, logits, tokens);
    if (rows === 0) return;
    const tiles = Math.ceil(vocab / LOGIT_TILE);
    const stats = this.#scratch.atLeast(rows * tiles * TILE_SUM_BYTES);
    const blocks = Math.ceil(tiles / TILES_PER_BLOCK);
    this.#tiles.get().launch(stream, blocks, rows, 1, TILE_THREADS, 0, { stats, logits, vocab, tiles });
    this.#rows.get().launch(stream, rows, 1, 1, ROW_THREADS, 4 * tiles, {
      chosen: out.chosen,
      ranks: out.ranks,
      top_ids: out.topIds,
      top_logprobs: out.topLogprobs,
      logits,
      stats,
      tokens,
      vocab,
      tiles,
      top,
    });
  }
}
