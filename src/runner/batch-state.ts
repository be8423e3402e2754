import {
  type Backend,
  type BatchTensors,
  MAX_BAD_WORD_TOKENS,
  MAX_LOGIT_EDITS,
  type SampleRows,
  SLOT_WORDS,
  type SlotTensors,
} from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { DType } from "../base/dtype.ts";
import { hasPenalties, packSlotRecord } from "./slot-record.ts";
import type { ScheduledBatch, ScheduledRow, SlotJoin } from "./types.ts";

export interface BatchStateShape {
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly blockSize: number;
  readonly vocabSize: number;
}

/** A step's metadata on the device. */
export interface StagedStep {
  readonly batch: BatchTensors;
  /** Rows to sample, or undefined when none is. */
  readonly sample: StagedSamples | undefined;
}

export interface StagedSamples extends SampleRows {
  /** int32 [R]: index of each sampled row's last token in the batch. */
  readonly tokenIndices: Tensor;
  /** The scheduled rows' indices, in the order of sampling. */
  readonly rows: readonly number[];
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
    scratchBlock: number,
  ) {
    const { maxNumSeqs, maxModelLen, blockSize, vocabSize } = shape;
    this.#maxBlocks = Math.ceil(maxModelLen / blockSize);
    // One slot more than sequences: padding rows of captured graphs live in it, on the scratch block, and sample greedily.
    const slots = maxNumSeqs + 1;
    const table = (dtype: DType, ...rest: number[]) => {
      const tensor = backend.empty(dtype, [slots, ...rest]);
      backend.fill(tensor, 0);
      return tensor;
    };
    this.slots = {
      tokens: table("int32", maxModelLen + 1),
      blockTables: table("int32", this.#maxBlocks),
      params: table("uint32", SLOT_WORDS),
      edits: table("uint32", MAX_LOGIT_EDITS, 3),
      badWords: table("uint32", MAX_BAD_WORD_TOKENS),
      allowed: table("uint32", Math.ceil(vocabSize / 32)),
      counts: table("uint32", vocabSize),
    };
    const padding = this.slots.blockTables.rows(maxNumSeqs, slots);
    backend.upload(padding, new Int32Array(this.#maxBlocks).fill(scratchBlock));
  }

  /** The slot of padding rows. */
  get paddingSlot(): number {
    return this.shape.maxNumSeqs;
  }

  /** Brings slots up to date and uploads the step's rows, then derives the per-token metadata on the device. */
  stage(step: ScheduledBatch): StagedStep {
    for (const join of step.joins) this.#join(join);
    this.#countJoined(step.joins);

    const updates = step.blockTableUpdates;
    const sampled = step.rows.flatMap((row, i) => (row.sample ? [i] : []));
    const rowWords = 3 * step.rows.length;
    const words = new Int32Array(rowWords + 3 * sampled.length + 2 * updates.length);
    for (const [i, row] of step.rows.entries()) words.set([row.slot, row.start, row.count], 3 * i);

    const lastTokens = lastTokenIndices(step.rows);
    for (const [i, index] of sampled.entries()) {
      const row = step.rows[index]!;
      words[rowWords + i] = row.slot;
      words[rowWords + sampled.length + i] = row.start + row.count - 1;
      words[rowWords + 2 * sampled.length + i] = lastTokens[index]!;
    }
    const updateOffset = rowWords + 3 * sampled.length;
    for (const [i, { slot, index, block }] of updates.entries()) {
      words[updateOffset + i] = slot * this.#maxBlocks + index;
      words[updateOffset + updates.length + i] = block;
    }

    const staging = this.workspace.tensor("step", "int32", [words.length]);
    this.backend.upload(staging, words);
    if (updates.length > 0) {
      const indices = staging.rows(updateOffset, updateOffset + updates.length);
      const values = staging.rows(updateOffset + updates.length, words.length);
      this.backend.scatter(this.slots.blockTables, indices, values);
    }
    const batch = this.#batchTensors(step);
    this.backend.prepareBatch(batch, staging.rows(0, rowWords).reshape(step.rows.length, 3), this.slots);
    if (sampled.length === 0) return { batch, sample: undefined };
    const column = (i: number) =>
      staging.rows(rowWords + i * sampled.length, rowWords + (i + 1) * sampled.length);
    return {
      batch,
      sample: { rowSlots: column(0), positions: column(1), tokenIndices: column(2), rows: sampled },
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

  #countJoined(joins: readonly SlotJoin[]): void {
    const rows = joins.flatMap(({ slot, tokens, promptLength, sampling }) =>
      hasPenalties(sampling) ? [slot, promptLength, tokens.length] : [],
    );
    if (rows.length === 0) return;
    const table = this.workspace.tensor("joins", "int32", [rows.length / 3, 3]);
    this.backend.upload(table, Int32Array.from(rows));
    this.backend.countTokens(this.slots, table);
  }

  #batchTensors({ rows, decodeRows, numTokens }: ScheduledBatch): BatchTensors {
    const perToken = (name: string) => this.workspace.tensor(name, "int32", [numTokens]);
    const perRow = (name: string, extra = 0) => this.workspace.tensor(name, "int32", [rows.length + extra]);
    return {
      numTokens,
      numRows: rows.length,
      decodeRows,
      maxQueryLen: rows.reduce((most, row) => Math.max(most, row.count), 0),
      maxContextLen: rows.reduce((most, row) => Math.max(most, row.start + row.count), 0),
      tokenIds: perToken("tokenIds"),
      positions: perToken("positions"),
      slotMapping: perToken("slotMapping"),
      cuSeqlensQ: perRow("cuSeqlensQ", 1),
      contextLens: perRow("contextLens"),
      rowSlots: perRow("rowSlots"),
      blockTables: this.slots.blockTables,
      blockSize: this.shape.blockSize,
    };
  }
}

/** Index in the batch of each row's last token. */
function lastTokenIndices(rows: readonly ScheduledRow[]): number[] {
  let end = 0;
  return rows.map((row) => {
    end += row.count;
    return end - 1;
  });
}
