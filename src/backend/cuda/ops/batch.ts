import type { BatchTensors, SlotTensors } from "../../backend.ts";
import { checkCountTokens, checkPrepareBatch, checkScatter } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { SLOT_CONSTANTS } from "./slot-layout.ts";

const THREADS = 256;
const COUNT_THREADS = 1024;

const SOURCE = { file: "batch.cu", constants: SLOT_CONSTANTS } as const;
const PREPARE_BATCH = {
  ...SOURCE,
  entry: "prepare_batch",
  pointers: [
    ...(["token_ids", "positions", "slot_mapping", "cu_seqlens_q", "context_lens", "row_slots"] as const),
    ...(["rows", "tokens", "block_tables"] as const),
  ],
  scalars: ["num_tokens", "num_rows", "capacity", "max_blocks", "block_size"],
} as const;
const SCATTER = {
  ...SOURCE,
  entry: "scatter",
  pointers: ["target", "indices", "values"],
  scalars: ["count"],
} as const;
const COUNT_TOKENS = {
  ...SOURCE,
  entry: "count_tokens",
  pointers: ["counts", "tokens", "rows"],
  scalars: ["capacity", "vocab"],
} as const;

/** Batch metadata and slot tables. */
export class BatchOps {
  readonly #prepareBatch: KernelVariants<typeof PREPARE_BATCH>;
  readonly #scatter: KernelVariants<typeof SCATTER>;
  readonly #countTokens: KernelVariants<typeof COUNT_TOKENS>;

  constructor(library: KernelLibrary, options: KernelOptions = {}) {
    this.#prepareBatch = new KernelVariants(library, PREPARE_BATCH, "float32", options);
    this.#scatter = new KernelVariants(library, SCATTER, "float32", options);
    this.#countTokens = new KernelVariants(library, COUNT_TOKENS, "float32", options);
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
    const blocks = Math.max(1, Math.ceil(tokens / THREADS));
    this.#prepareBatch.get().launch(stream, blocks, 1, 1, THREADS, 4 * (numRows + 1), {
      token_ids: batch.tokenIds,
      positions: batch.positions,
      slot_mapping: batch.slotMapping,
      cu_seqlens_q: batch.cuSeqlensQ,
      context_lens: batch.contextLens,
      row_slots: batch.rowSlots,
      rows,
      tokens: slots.tokens,
      block_tables: slots.blockTables,
      num_tokens: tokens,
      num_rows: numRows,
      capacity,
      max_blocks: maxBlocks,
      block_size: blockSize,
    });
  }

  /** See `Backend.scatter`. The indices must differ: of several values for one entry any may win. */
  scatter(stream: number, target: Tensor, indices: Tensor, values: Tensor): void {
    const { count } = checkScatter(target, indices, values);
    if (count === 0) return;
    const blocks = Math.ceil(count / THREADS);
    this.#scatter.get().launch(stream, blocks, 1, 1, THREADS, 0, { target, indices, values, count });
  }

  /** See `Backend.countTokens`. */
  countTokens(stream: number, slots: SlotTensors, rows: Tensor): void {
    const { count, capacity, vocab } = checkCountTokens(slots, rows);
    if (count === 0) return;
    const { counts, tokens } = slots;
    const args = { counts, tokens, rows, capacity, vocab };
    this.#countTokens.get().launch(stream, count, 1, 1, COUNT_THREADS, 0, args);
  }
}
