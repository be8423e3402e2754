import {
  type Backend,
  JOIN_WORDS,
  JoinWord,
  LOGIT_EDIT_WORDS,
  SLOT_WORDS,
  type SlotTensors,
} from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Workspace } from "../backend/workspace.ts";
import type { DType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../base/sampling-params.ts";
import { deviceBlock, SCRATCH_BLOCK } from "./kv-cache.ts";
import type { LayoutGroup } from "./kv-layout.ts";
import { isPlain, packSlotRecord } from "./slot-record.ts";
import type { StepRow } from "./step-buffers.ts";
import type { BlockTableUpdate, RowMask, ScheduledBatch, SlotJoin } from "./types.ts";

/** Block-table entries that are uploaded at once. */
const UPDATES_CHUNK = 4096;

export interface BatchStateShape {
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly blockSize: number;
  readonly groups: readonly LayoutGroup[];
  readonly vocabSize: number;
}

/**
 * The device-resident batch. Each running sequence has a slot that holds its tokens, how far they are computed, its block
 * tables and sampling parameters; a step uploads only what the device cannot know: sequences that join, and new blocks.
 */
export class BatchState {
  readonly slots: SlotTensors;
  readonly #maxBlocks: number;
  /** By slot, the mask that the device has, where it is known. */
  readonly #masks = new Map<number, Omit<RowMask, "row">>();
  /** By slot, the vacant one's included. */
  readonly #plain: boolean[];

  constructor(
    private readonly backend: Backend,
    private readonly workspace: Workspace,
    private readonly shape: BatchStateShape,
  ) {
    const { maxNumSeqs, maxModelLen, blockSize, groups, vocabSize } = shape;
    this.#maxBlocks = Math.ceil(maxModelLen / blockSize);
    this.#plain = Array(maxNumSeqs + 1).fill(true);
    // One slot more than sequences stays vacant, for padding: zeros, so its every block is the scratch block, and it samples
    // greedily.
    const zeros = (dtype: DType, shape: readonly number[]) => {
      const tensor = backend.empty(dtype, shape);
      backend.fill(tensor, 0);
      return tensor;
    };
    const table = (dtype: DType, ...rest: number[]) => zeros(dtype, [maxNumSeqs + 1, ...rest]);
    this.slots = {
      tokens: table("int32", maxModelLen + 1),
      lengths: table("int32"),
      numComputedTokens: table("int32"),
      blockTables: zeros("int32", [groups.length, maxNumSeqs + 1, this.#maxBlocks]),
      params: table("uint32", SLOT_WORDS),
      edits: table("uint32", MAX_LOGIT_EDITS, LOGIT_EDIT_WORDS),
      badWords: table("uint32", MAX_BAD_WORD_TOKENS),
      allowed: table("uint32", Math.ceil(vocabSize / 32)),
      counts: table("uint32", vocabSize),
    };
    invariant(SCRATCH_BLOCK === 0, "zeros must name the scratch block");
  }

  /** Rows that compute a token and draw the next for nobody. */
  padding(rows: number): readonly StepRow[] {
    return Array<StepRow>(rows).fill({ slot: this.shape.maxNumSeqs, count: 1, sample: true });
  }

  /** True if the slot's sequence needs no logits: a temperature is all that it asks for. */
  isPlain(slot: number): boolean {
    return this.#plain[slot]!;
  }

  /** Brings slots up to date: sequences that join, and new blocks, those at least that rows do not bring themselves. */
  apply({ joins, blockTableUpdates }: Pick<ScheduledBatch, "joins" | "blockTableUpdates">): void {
    for (const join of joins) this.#uploadSlot(join);
    this.#join(joins);
    this.#updateBlockTables(blockTableUpdates);
  }

  /** Sets the tokens that a masked slot may draw; they stay until they are set again. Within a string they mostly do. */
  allow(slot: number, { mask, version }: Omit<RowMask, "row">): void {
    const known = this.#masks.get(slot);
    if (known && known.mask === mask && version !== undefined && known.version === version) return;
    this.#masks.delete(slot);
    this.#put(this.slots.allowed, slot, mask);
    this.#masks.set(slot, { mask, version });
  }

  /** Takes the memory that updates are uploaded to. */
  reserve(): void {
    this.workspace.tensor("joins", "int32", [JOIN_WORDS * this.shape.maxNumSeqs]);
    this.workspace.tensor("blockTableUpdates", "int32", [2 * UPDATES_CHUNK]);
  }

  dispose(): void {
    for (const tensor of Object.values(this.slots) as Tensor[]) tensor.buffer.dispose();
  }

  #uploadSlot({ slot, tokens, sampling }: SlotJoin): void {
    this.#plain[slot] = isPlain(sampling);
    const record = packSlotRecord(sampling, this.shape.vocabSize);
    const put = (table: Tensor, data: Int32Array | Uint32Array) => this.#put(table, slot, data);
    put(this.slots.tokens, tokens);
    put(this.slots.params, record.params);
    if (record.edits) put(this.slots.edits, record.edits);
    if (record.badWords) put(this.slots.badWords, record.badWords);
    if (!record.allowed) return;
    this.#masks.delete(slot);
    put(this.slots.allowed, record.allowed);
  }

  #put(table: Tensor, slot: number, data: Int32Array | Uint32Array): void {
    const row = table.rows(slot, slot + 1);
    this.backend.upload(row.reshape(row.size).rows(0, data.length), data);
  }

  #join(joins: readonly SlotJoin[]): void {
    if (joins.length === 0) return;
    const words = new Int32Array(JOIN_WORDS * joins.length);
    for (const [i, { slot, tokens, promptLength, numComputedTokens }] of joins.entries()) {
      words[JOIN_WORDS * i + JoinWord.slot] = slot;
      words[JOIN_WORDS * i + JoinWord.promptLength] = promptLength;
      words[JOIN_WORDS * i + JoinWord.length] = tokens.length;
      words[JOIN_WORDS * i + JoinWord.numComputedTokens] = numComputedTokens;
    }
    const staged = this.#upload("joins", words).reshape(joins.length, JOIN_WORDS);
    this.backend.joinSlots(this.slots, staged);
  }

  #updateBlockTables(updates: readonly BlockTableUpdate[]): void {
    for (let start = 0; start < updates.length; start += UPDATES_CHUNK) {
      const chunk = updates.slice(start, start + UPDATES_CHUNK);
      const words = new Int32Array(2 * chunk.length);
      for (const [i, { slot, group, index, block }] of chunk.entries()) {
        words[i] = (group * (this.shape.maxNumSeqs + 1) + slot) * this.#maxBlocks + index;
        words[chunk.length + i] = deviceBlock(block, this.shape.groups[group]!.parts);
      }
      const staged = this.#upload("blockTableUpdates", words);
      const [indices, values] = [staged.rows(0, chunk.length), staged.rows(chunk.length, words.length)];
      this.backend.scatter(this.slots.blockTables, indices, values);
    }
  }

  #upload(name: string, words: Int32Array): Tensor {
    const tensor = this.workspace.tensor(name, "int32", [words.length]);
    this.backend.upload(tensor, words);
    return tensor;
  }
}
