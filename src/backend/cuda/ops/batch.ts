import type { BatchTensors, SlotTensors } from "../../backend.ts";
import { checkCountTokens, checkPrepareBatch, checkScatter } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants } from "./kernel-variants.ts";

const THREADS = 256;
const COUNT_THREADS = 1024;

/** Batch metadata and slot tables. */
export class BatchOps {
  readonly #prepareBatch: KernelVariants;
  readonly #scatter: KernelVariants;
  readonly #countTokens: KernelVariants;

  constructor(library: KernelLibrary, options: KernelOptions = {}) {
    const variants = (entry: string, signature: string) =>
      new KernelVariants(library, "batch.cu", entry, signature, "float32", options);
    this.#prepareBatch = variants("prepare_batch", "pppppppppiiiii");
    this.#scatter = variants("scatter", "pppi");
    this.#countTokens = variants("count_tokens", "pppii");
  }

  units(): KernelUnit[] {
    return [this.#prepareBatch.unit()];
  }

  /**
   * See `Backend.prepareBatch`. Tokens past those of the rows are padding: id 0, position 0, and slot −1, at which
   * nothing is stored.
   */
  prepareBatch(stream: number, batch: BatchTensors, rows: Tensor, slots: SlotTensors): void {
    const { tokens, numRows, capacity, maxBlocks, blockSize } = checkPrepareBatch(batch, rows, slots);
    const { tokenIds, positions, slotMapping, cuSeqlensQ, contextLens, rowSlots } = batch;
    const blocks = Math.max(1, Math.ceil(tokens / THREADS));
    this.#prepareBatch
      .get()
      .launch(
        ...[stream, blocks, 1, 1, THREADS, 4 * (numRows + 1)],
        ...[tokenIds.address, positions.address, slotMapping.address],
        ...[cuSeqlensQ.address, contextLens.address, rowSlots.address],
        ...[rows.address, slots.tokens.address, slots.blockTables.address],
        ...[tokens, numRows, capacity, maxBlocks, blockSize],
      );
  }

  /** See `Backend.scatter`. The indices must differ: of several values for one entry any may win. */
  scatter(stream: number, target: Tensor, indices: Tensor, values: Tensor): void {
    const { count } = checkScatter(target, indices, values);
    if (count === 0) return;
    const blocks = Math.ceil(count / THREADS);
    this.#scatter
      .get()
      .launch(stream, blocks, 1, 1, THREADS, 0, target.address, indices.address, values.address, count);
  }

  /** See `Backend.countTokens`. */
  countTokens(stream: number, slots: SlotTensors, rows: Tensor): void {
    const { count, capacity, vocab } = checkCountTokens(slots, rows);
    if (count === 0) return;
    this.#countTokens
      .get()
      .launch(
        ...[stream, count, 1, 1, COUNT_THREADS, 0],
        ...[slots.counts.address, slots.tokens.address, rows.address, capacity, vocab],
      );
  }
}
