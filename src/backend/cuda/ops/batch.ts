import type { SampleRows, SlotTensors, StepAreas, StepBatch } from "../../backend.ts";
import { checkJoinSlots, checkPost, checkPrepareBatch, checkScatter } from "../../checks.ts";
import { rowWords } from "../../row-words.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { RECORD_CONSTANTS, SLOT_CONSTANTS } from "./slot-layout.ts";

const THREADS = 256;
const JOIN_THREADS = 1024;
/** The one block of a step with many tokens. */
const PREPARE_THREADS = 1024;

const SOURCE = {
  file: "batch.cu",
  constants: { ...SLOT_CONSTANTS, ...RECORD_CONSTANTS, PREPARE_THREADS },
} as const;
const JOIN_SLOTS = {
  ...SOURCE,
  entry: "join_slots",
  pointers: ["lengths", "num_computed", "counts", "tokens", "params", "joins"],
  scalars: ["capacity", "vocab"],
} as const;
const PREPARE_BATCH = {
  ...SOURCE,
  entry: "prepare_batch",
  pointers: [
    ...(["token_ids", "positions", "slot_mappings", "cu_seqlens_q", "context_lens", "row_slots"] as const),
    ...(["sample_slots", "sample_positions", "sample_tokens", "num_computed"] as const),
    ...(["block_tables", "steps", "inbox", "tokens", "lengths"] as const),
  ],
  scalars: [
    ...(["num_tokens", "num_rows", "groups", "mapping_stride", "slots", "capacity", "max_blocks"] as const),
    ...(["block_size", "areas", "area_words"] as const),
  ],
} as const;
const SCATTER = {
  ...SOURCE,
  entry: "scatter",
  pointers: ["target", "indices", "values"],
  scalars: ["count"],
} as const;
const POST = {
  ...SOURCE,
  entry: "post",
  pointers: ["outbox", "results", "steps"],
  scalars: ["areas", "area_words", "count"],
} as const;

/** Batch metadata, slot tables, and what steps tell the host. */
export class BatchOps {
  readonly #joinSlots: KernelVariants<typeof JOIN_SLOTS>;
  readonly #prepareBatch: KernelVariants<typeof PREPARE_BATCH>;
  readonly #scatter: KernelVariants<typeof SCATTER>;
  readonly #post: KernelVariants<typeof POST>;

  constructor(library: KernelLibrary, options: KernelOptions = {}) {
    this.#joinSlots = new KernelVariants(library, JOIN_SLOTS, "float32", options);
    this.#prepareBatch = new KernelVariants(library, PREPARE_BATCH, "float32", options);
    this.#scatter = new KernelVariants(library, SCATTER, "float32", options);
    this.#post = new KernelVariants(library, POST, "float32", options);
  }

  units(): KernelUnit[] {
    return [this.#prepareBatch.unit()];
  }

  /** See `Backend.joinSlots`. */
  joinSlots(stream: number, slots: SlotTensors, joins: Tensor): void {
    const { joins: count, capacity, vocab } = checkJoinSlots(slots, joins);
    if (count === 0) return;
    const { lengths, numComputedTokens: num_computed, counts, tokens, params } = slots;
    const args = { lengths, num_computed, counts, tokens, params, joins, capacity, vocab };
    this.#joinSlots.get().launch(stream, count, 1, 1, JOIN_THREADS, 0, args);
  }

  /**
   * See `Backend.prepareBatch`. Tokens past those of the rows are padding: id 0, position 0, and slot mappings −1, where
   * nothing is stored.
   */
  prepareBatch(
    stream: number,
    batch: StepBatch,
    samples: SampleRows,
    inbox: StepAreas,
    slots: SlotTensors,
  ): void {
    const shape = checkPrepareBatch(batch, samples, inbox, slots);
    const { tokens, numRows, groups, mappingStride, slots: count, capacity, maxBlocks } = shape;
    const { blockSize, areas, areaWords } = shape;
    const threads = Math.max(groups * tokens, numRows) <= THREADS ? THREADS : PREPARE_THREADS;
    this.#prepareBatch.get().launch(stream, 1, 1, 1, threads, 4 * rowWords(groups) * numRows, {
      token_ids: batch.tokenIds,
      positions: batch.positions,
      slot_mappings: batch.slotMappings,
      cu_seqlens_q: batch.cuSeqlensQ,
      context_lens: batch.contextLens,
      row_slots: batch.rowSlots,
      sample_slots: samples.slots,
      sample_positions: samples.positions,
      sample_tokens: samples.tokenIndices,
      num_computed: slots.numComputedTokens,
      block_tables: slots.blockTables,
      steps: inbox.steps,
      inbox: inbox.areas,
      tokens: slots.tokens,
      lengths: slots.lengths,
      num_tokens: tokens,
      num_rows: numRows,
      groups,
      mapping_stride: mappingStride,
      slots: count,
      capacity,
      max_blocks: maxBlocks,
      block_size: blockSize,
      areas,
      area_words: areaWords,
    });
  }

  /** See `Backend.post`. */
  post(stream: number, outbox: StepAreas, results: Tensor): void {
    const { count, areas, areaWords } = checkPost(outbox, results);
    if (count === 0) return;
    const { steps, areas: memory } = outbox;
    const args = { outbox: memory, results, steps, areas, area_words: areaWords, count };
    this.#post.get().launch(stream, Math.ceil(count / THREADS), 1, 1, THREADS, 0, args);
  }

  /** See `Backend.scatter`. The indices must differ: of several values for one entry any may win. */
  scatter(stream: number, target: Tensor, indices: Tensor, values: Tensor): void {
    const { count } = checkScatter(target, indices, values);
    if (count === 0) return;
    const blocks = Math.ceil(count / THREADS);
    this.#scatter.get().launch(stream, blocks, 1, 1, THREADS, 0, { target, indices, values, count });
  }
}
