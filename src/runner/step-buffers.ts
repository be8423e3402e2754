import type { Backend, BatchTensors, SampleRows, SlotTensors, StepBatch } from "../backend/backend.ts";
import { RowWord, rowWords } from "../backend/row-words.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { DType } from "../base/dtype.ts";
import { deviceBlock } from "./kv-cache.ts";
import type { LayoutGroup } from "./kv-layout.ts";
import type { BlockTableUpdate, ScheduledRow } from "./types.ts";

/** The part of a row that the device is told. */
export type StepRow = Pick<ScheduledRow, "slot" | "count" | "sample">;

/** The largest step, which the buffers are made for. */
export interface StepLimits {
  readonly maxTokens: number;
  readonly maxRows: number;
  /** Rows of logits that are held at once, `maxRows` at least. */
  readonly maxLogits: number;
  readonly vocabSize: number;
  readonly blockSize: number;
  readonly numGroups: number;
}

/** A step's words in the mailbox: the records of its rows, then the indices of samples whose log-probabilities are asked for. */
export function inboxWords({ maxRows, numGroups }: Pick<StepLimits, "maxRows" | "numGroups">): number {
  return (rowWords(numGroups) + 1) * maxRows;
}

/** The sizes of a step; `numSamples` of its rows are sampled. */
export type StepExtents = Pick<BatchTensors, "numTokens" | "numRows" | "decodeRows" | "maxQueryLen"> & {
  readonly numSamples: number;
};

/** The sizes of a captured step, to which others are padded: decode rows alone, or one row of a prompt. */
export type StepBucket = { readonly decodeRows: number } | { readonly promptTokens: number };

/** Every row of a captured step is sampled. */
export function extentsOf(bucket: StepBucket): StepExtents {
  if ("promptTokens" in bucket) {
    const { promptTokens } = bucket;
    return { numTokens: promptTokens, numRows: 1, decodeRows: 0, maxQueryLen: promptTokens, numSamples: 1 };
  }
  const { decodeRows: rows } = bucket;
  return { numTokens: rows, numRows: rows, decodeRows: rows, maxQueryLen: 1, numSamples: rows };
}

/** Writes the records of a step's rows, of which the first `decodeRows` have one token, to `words`. */
export function writeRows(
  words: Int32Array,
  rows: readonly StepRow[],
  decodeRows: number,
  numGroups: number,
): StepExtents {
  let [numTokens, maxQueryLen, numSamples] = [0, 0, 0];
  for (let i = 0; i < rows.length; i++) {
    const { slot, count, sample } = rows[i]!;
    const at = rowWords(numGroups) * i;
    words[at + RowWord.slot] = slot;
    words[at + RowWord.count] = count;
    words[at + RowWord.sample] = sample ? numSamples++ : -1;
    words[at + RowWord.blockIndex] = -1;
    numTokens += count;
    maxQueryLen = Math.max(maxQueryLen, count);
  }
  return { numTokens, numRows: rows.length, decodeRows, maxQueryLen, numSamples };
}

/**
 * Lets the rows written to `words` bring new blocks, each those of one index of its own slot's tables.
 * @param rowOfSlot a word for each slot, which may hold anything.
 * @returns the updates that no row has room for.
 */
export function writeBlocks(
  words: Int32Array,
  rows: readonly StepRow[],
  updates: readonly BlockTableUpdate[],
  rowOfSlot: Int32Array,
  groups: readonly LayoutGroup[],
): readonly BlockTableUpdate[] {
  if (updates.length === 0) return updates;
  for (let row = 0; row < rows.length; row++) rowOfSlot[rows[row]!.slot] = row;
  return updates.filter(({ slot, group, index, block }) => {
    // A slot without a row has what an earlier step, or nobody, wrote.
    const row = rowOfSlot[slot]!;
    const at = rowWords(groups.length) * row;
    const blocks = at + RowWord.block;
    if (rows[row]?.slot !== slot) return true;
    if (words[at + RowWord.blockIndex] === -1) {
      words[at + RowWord.blockIndex] = index;
      words.fill(-1, blocks, blocks + groups.length);
    }
    if (words[at + RowWord.blockIndex] !== index || words[blocks + group] !== -1) return true;
    words[blocks + group] = deviceBlock(block, groups[group]!.parts);
    return false;
  });
}

/** The parts of `StepBuffers` that a step of some extents reads and writes. */
export interface StepTensors {
  /** Derived from the rows by `prepareBatch`. */
  readonly batch: StepBatch;
  /** The same, as each group of layers sees it. */
  readonly batches: readonly BatchTensors[];
  readonly samples: SampleRows;
  /** float32 [N, V], and the same processed, where slots ask for that. */
  readonly logits: Tensor;
  readonly processed: Tensor;
  /** int32 [N]: the drawn tokens. */
  readonly sampled: Tensor;
}

/**
 * The device memory that a step reads and writes besides slots, cache and activations. Made once: a captured graph
 * holds its addresses, and every step, captured or not, uses it from the start.
 */
export class StepBuffers {
  readonly #tokenIds: Tensor;
  readonly #positions: Tensor;
  readonly #slotMappings: Tensor;
  /** By group of layers. */
  readonly #groups: readonly Pick<BatchTensors, "slotMapping" | "blockTables">[];
  readonly #cuSeqlensQ: Tensor;
  readonly #contextLens: Tensor;
  readonly #rowSlots: Tensor;
  readonly #samples: SampleRows;
  readonly #logits: Tensor;
  readonly #processed: Tensor;
  readonly #sampled: Tensor;
  readonly #all: Tensor[] = [];

  constructor(
    backend: Backend,
    { blockTables }: Pick<SlotTensors, "blockTables">,
    private readonly limits: StepLimits,
  ) {
    const { maxTokens, maxRows, maxLogits, vocabSize, numGroups } = limits;
    const make = (dtype: DType, ...shape: number[]) => {
      const tensor = backend.empty(dtype, shape);
      this.#all.push(tensor);
      return tensor;
    };
    this.#tokenIds = make("int32", maxTokens);
    this.#positions = make("int32", maxTokens);
    this.#slotMappings = make("int32", numGroups, maxTokens);
    const [slots, maxBlocks] = [blockTables.dim(1), blockTables.dim(2)];
    this.#groups = Array.from({ length: numGroups }, (_, group) => ({
      slotMapping: this.#slotMappings.rows(group, group + 1).reshape(maxTokens),
      blockTables: blockTables.rows(group, group + 1).reshape(slots, maxBlocks),
    }));
    this.#cuSeqlensQ = make("int32", maxRows + 1);
    this.#contextLens = make("int32", maxRows);
    this.#rowSlots = make("int32", maxRows);
    this.#samples = {
      slots: make("int32", maxRows),
      positions: make("int32", maxRows),
      tokenIndices: make("int32", maxRows),
    };
    this.#logits = make("float32", maxLogits, vocabSize);
    this.#processed = make("float32", maxRows, vocabSize);
    this.#sampled = make("int32", maxRows);
  }

  view({ numSamples, ...extents }: StepExtents): StepTensors {
    const { numTokens, numRows } = extents;
    const first = (tensor: Tensor, count: number) => tensor.rows(0, count);
    const common = {
      ...extents,
      tokenIds: first(this.#tokenIds, numTokens),
      positions: first(this.#positions, numTokens),
      cuSeqlensQ: first(this.#cuSeqlensQ, numRows + 1),
      contextLens: first(this.#contextLens, numRows),
      rowSlots: first(this.#rowSlots, numRows),
      blockSize: this.limits.blockSize,
    };
    return {
      batch: { ...common, slotMappings: this.#slotMappings },
      batches: this.#groups.map(({ slotMapping, blockTables }) => ({
        ...common,
        ...{ slotMapping: first(slotMapping, numTokens), blockTables },
      })),
      samples: {
        slots: first(this.#samples.slots, numSamples),
        positions: first(this.#samples.positions, numSamples),
        tokenIndices: first(this.#samples.tokenIndices, numSamples),
      },
      logits: this.logits(numSamples),
      processed: first(this.#processed, numSamples),
      sampled: this.sampled(numSamples),
    };
  }

  /** float32 [count, V]. */
  logits(count: number): Tensor {
    return this.#logits.rows(0, count);
  }

  /** int32 [count]: the tokens that the last step drew, in the order of its sampled rows. */
  sampled(count: number): Tensor {
    return this.#sampled.rows(0, count);
  }

  dispose(): void {
    for (const { buffer } of this.#all) buffer.dispose();
  }
}
