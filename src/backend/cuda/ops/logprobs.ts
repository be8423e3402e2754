import type { LogprobTensors } from "../../backend.ts";
import { checkLogprobs } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { ROW_THREADS, TILE, TILE_THREADS, TILES_PER_BLOCK, TileScratch } from "./tile-scratch.ts";

/** sizeof(TileSum) in logprobs.cu. */
const SUM_BYTES = 8;

/** Log-probabilities of logits. */
export class LogprobOps {
  readonly #tiles: KernelVariants;
  readonly #rows: KernelVariants;
  readonly #scratch: TileScratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    options: KernelOptions = {},
  ) {
    const variants = (entry: string, signature: string) =>
      new KernelVariants(library, "logprobs.cu", entry, signature, "float32", options);
    this.#tiles = variants("logprob_tiles", "ppii");
    this.#rows = variants("logprob_rows", "pppppppiii");
    this.#scratch = new TileScratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#tiles.unit()];
  }

  /** See `Backend.logprobs`. A token outside the vocabulary (−1, of a failed row) has NaN and rank −1. */
  logprobs(stream: number, out: LogprobTensors, logits: Tensor, tokens: Tensor): void {
    const { rows, vocab, top } = checkLogprobs(out, logits, tokens);
    if (rows === 0) return;
    const tiles = Math.ceil(vocab / TILE);
    const sums = this.#scratch.address(rows * tiles * SUM_BYTES);
    this.#tiles
      .get()
      .launch(
        ...[stream, Math.ceil(tiles / TILES_PER_BLOCK), rows, 1, TILE_THREADS, 0],
        ...[sums, logits.address, vocab, tiles],
      );
    this.#rows
      .get()
      .launch(
        ...[stream, rows, 1, 1, ROW_THREADS, 4 * tiles],
        ...[out.chosen.address, out.ranks.address, out.topIds.address, out.topLogprobs.address],
        ...[logits.address, sums, tokens.address, vocab, tiles, top],
      );
  }
}
