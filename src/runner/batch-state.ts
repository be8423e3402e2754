import {
  type Backend,
  type BatchTensors,
  LOGIT_EDIT_WORDS,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
} from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { DType } from "../base/dtype.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../base/sampling-params.ts";
import { SCRATCH_BLOCK } from "./kv-cache.ts";
import { hasPenalties, packSlotRecord } from "./slot-record.ts";
import type { BlockTableUpdate, ScheduledBatch, ScheduledRow, SlotJoin } from "./types.ts";

export interface BatchStateShape {
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly blockSize: number;
  readonly vocabSize: number;
}

/** The slot and positions of a row to compute. */
export type RowSpan = Pick<ScheduledRow, "slot" | "start" | "count">;

/** Rows on the device, before `Backend.prepareBatch`. */
export interface StagedRows {
  /** int32 [R, 3]: slot, first position, token count. */
  readonly rows: Tensor;
  /** Where `prepareBatch` puts what it derives from them. */
  readonly batch: BatchTensors;
}

/** Rows to sample, on the device. */
export interface StagedSamples extends SampleRows {
  /** int32 [R]: index of each sampled row's last token in the batch. */
  readonly tokenIndices: Tensor;
}

/**
 * The device-resident batch. Each running sequence has a slot that holds its tokens, block table and sampling
 * parameters; a step uploads only what changed and which rows to compute, and the device derives the rest.
 */
export class BatchState {
  readonly slots: SlotTensors;
  readonly #maxBlocks: number;

  constructor(
    private readonly backend: Backend,
    private readonly workspace: Workspace,
    private readonly shape: BatchStateShape,
  ) {
    const { maxNumSeqs, maxModelLen, blockSize, vocabSize } = shape;
    this.#maxBlocks = Math.ceil(maxModelLen / blockSize);
    // One slot more than sequences: padding rows live in it, with every block the scratch block, and sample greedily.
    const table = (dtype: DType, ...rest: number[]) => {
      const tensor = backend.empty(dtype, [maxNumSeqs + 1, ...rest]);
      backend.fill(tensor, 0);
      return tensor;
    };
    this.slots = {
      tokens: table("int32", maxModelLen + 1),
      blockTables: table("int32", this.#maxBlocks),
      params: table("uint32", SLOT_WORDS),
      edits: table("uint32", MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS),
      badWords: table("uint32", MAX_BAD_WORD_TOKENS),
      allowed: table("uint32", Math.ceil(vocabSize / 32)),
      counts: table("uint32", vocabSize),
    };
    backend.fill(this.slots.blockTables, SCRATCH_BLOCK);
  }

  /** A row that computes one token for nobody. */
  get paddingRow(): RowSpan {
    return { slot: this.shape.maxNumSeqs, start: 0, count: 1 };
  }

  /** Brings slots up to date: sequences that join, and new blocks. */
  apply({ joins, blockTableUpdates }: Pick<ScheduledBatch, "joins" | "blockTableUpdates">): void {
    for (const join of joins) this.#join(join);
    this.#countTokens(joins);
    this.#updateBlockTables(blockTableUpdates);
  }

  /** Uploads rows, decode rows first. */
  stageRows(rows: readonly RowSpan[], decodeRows: number): StagedRows {
    const words = new Int32Array(3 * rows.length);
    let [numTokens, maxQueryLen, maxContextLen] = [0, 0, 0];
    for (const [i, { slot, start, count }] of rows.entries()) {
      words[3 * i] = slot;
      words[3 * i + 1] = start;
      words[3 * i + 2] = count;
      numTokens += count;
      maxQueryLen = Math.max(maxQueryLen, count);
      maxContextLen = Math.max(maxContextLen, start + count);
    }
    return {
      rows: this.#upload("rows", words).reshape(rows.length, 3),
      batch: this.batchTensors({ numTokens, numRows: rows.length, decodeRows, maxQueryLen, maxContextLen }),
    };
  }

  /** Uploads which of `rows` to sample, by index. */
  stageSamples(rows: readonly RowSpan[], sampled: readonly number[]): StagedSamples {
    const words = new Int32Array(3 * sampled.length);
    const ends: number[] = [];
    for (const { count } of rows) ends.push((ends.at(-1) ?? 0) + count);
    for (const [i, index] of sampled.entries()) {
      const { slot, start, count } = rows[index]!;
      words[i] = slot;
      words[sampled.length + i] = start + count - 1;
      words[2 * sampled.length + i] = ends[index]! - 1;
    }
    const staged = this.#upload("samples", words).reshape(3, sampled.length);
    const column = (i: number) => staged.rows(i, i + 1).reshape(sampled.length);
    return { rowSlots: column(0), positions: column(1), tokenIndices: column(2) };
  }

  /** The batch's metadata, not filled in yet. The same names always give the same memory. */
  batchTensors(
    extents: Pick<BatchTensors, "numTokens" | "numRows" | "decodeRows" | "maxQueryLen" | "maxContextLen">,
  ): BatchTensors {
    const int32 = (name: string, length: number) => this.workspace.tensor(name, "int32", [length]);
    return {
      ...extents,
      tokenIds: int32("tokenIds", extents.numTokens),
      positions: int32("positions", extents.numTokens),
      slotMapping: int32("slotMapping", extents.numTokens),
      cuSeqlensQ: int32("cuSeqlensQ", extents.numRows + 1),
      contextLens: int32("contextLens", extents.numRows),
      rowSlots: int32("rowSlots", extents.numRows),
      blockTables: this.slots.blockTables,
      blockSize: this.shape.blockSize,
    };
  }

  dispose(): void {
    for (const tensor of Object.values(this.slots) as Tensor[]) tensor.buffer.dispose();
  }

  #join({ slot, tokens, sampling }: SlotJoin): void {
    const record = packSlotRecord(sampling, this.shape.vocabSize);
    const put = (table: Tensor, data: Int32Array | Uint32Array) => {
      const row = table.rows(slot, slot + 1);
      this.backend.upload(row.reshape(row.size).rows(0, data.length), data);
    };
    put(this.slots.tokens, tokens);
    put(this.slots.params, record.params);
    if (record.edits) put(this.slots.edits, record.edits);
    if (record.badWords) put(this.slots.badWords, record.badWords);
    if (record.allowed) put(this.slots.allowed, record.allowed);
  }

  #countTokens(joins: readonly SlotJoin[]): void {
    const rows = joins.flatMap(({ slot, tokens, promptLength, sampling }) =>
      hasPenalties(sampling) ? [slot, promptLength, tokens.length] : [],
    );
    if (rows.length === 0) return;
    const table = this.#upload("joins", Int32Array.from(rows)).reshape(rows.length / 3, 3);
    this.backend.countTokens(this.slots, table);
  }

  #updateBlockTables(updates: readonly BlockTableUpdate[]): void {
    if (updates.length === 0) return;
    const words = new Int32Array(2 * updates.length);
    for (const [i, { slot, index, block }] of updates.entries()) {
      words[i] = slot * this.#maxBlocks + index;
      words[updates.length + i] = block + SCRATCH_BLOCK + 1;
    }
    const staged = this.#upload("blockTableUpdates", words);
    const indices = staged.rows(0, updates.length);
    this.backend.scatter(this.slots.blockTables, indices, staged.rows(updates.length, words.length));
  }

  #upload(name: string, words: Int32Array): Tensor {
    const tensor = this.workspace.tensor(name, "int32", [words.length]);
    this.backend.upload(tensor, words);
    return tensor;
  }
}
