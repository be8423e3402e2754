import {
  type Backend,
  type BatchTensors,
  ROW_WORDS,
  RowWord,
  type SampleRows,
  type SlotTensors,
} from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { DType } from "../base/dtype.ts";
import type { ScheduledRow } from "./types.ts";

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
}

/** The sizes of a step; `numSamples` of its rows are sampled. */
export type StepExtents = Pick<BatchTensors, "numTokens" | "numRows" | "decodeRows" | "maxQueryLen"> & {
  readonly numSamples: number;
};

/** The parts of `StepBuffers` that a step of some extents reads and writes. */
export interface StepTensors {
  /** int32 [R, ROW_WORDS]: the records of the rows, from the host. */
  readonly rows: Tensor;
  /** Derived from the rows by `prepareBatch`. */
  readonly batch: BatchTensors;
  readonly samples: SampleRows;
  /** float32 [N, V]. */
  readonly logits: Tensor;
  /** int32 [N]: the drawn tokens. */
  readonly sampled: Tensor;
}

/**
 * The device memory that a step reads and writes besides slots, cache and activations. Made once: a captured graph
 * holds its addresses, and every step, captured or not, uses it from the start.
 */
export class StepBuffers {
  readonly #rows: Tensor;
  readonly #tokenIds: Tensor;
  readonly #positions: Tensor;
  readonly #slotMapping: Tensor;
  readonly #cuSeqlensQ: Tensor;
  readonly #contextLens: Tensor;
  readonly #rowSlots: Tensor;
  readonly #samples: SampleRows;
  readonly #logits: Tensor;
  readonly #sampled: Tensor;
  readonly #all: Tensor[] = [];

  constructor(
    private readonly backend: Backend,
    private readonly slots: SlotTensors,
    private readonly limits: StepLimits,
  ) {
    const { maxTokens, maxRows, maxLogits, vocabSize } = limits;
    const make = (dtype: DType, ...shape: number[]) => {
      const tensor = backend.empty(dtype, shape);
      this.#all.push(tensor);
      return tensor;
    };
    this.#rows = make("int32", maxRows, ROW_WORDS);
    this.#tokenIds = make("int32", maxTokens);
    this.#positions = make("int32", maxTokens);
    this.#slotMapping = make("int32", maxTokens);
    this.#cuSeqlensQ = make("int32", maxRows + 1);
    this.#contextLens = make("int32", maxRows);
    this.#rowSlots = make("int32", maxRows);
    this.#samples = {
      slots: make("int32", maxRows),
      positions: make("int32", maxRows),
      tokenIndices: make("int32", maxRows),
    };
    this.#logits = make("float32", maxLogits, vocabSize);
    this.#sampled = make("int32", maxRows);
  }

  /** Uploads a step's rows, of which the first `decodeRows` have one token. */
  stage(rows: readonly StepRow[], decodeRows: number): StepExtents {
    const words = new Int32Array(ROW_WORDS * rows.length);
    let [numTokens, maxQueryLen, numSamples] = [0, 0, 0];
    for (const [i, { slot, count, sample }] of rows.entries()) {
      words[ROW_WORDS * i + RowWord.slot] = slot;
      words[ROW_WORDS * i + RowWord.count] = count;
      words[ROW_WORDS * i + RowWord.sample] = sample ? numSamples++ : -1;
      numTokens += count;
      maxQueryLen = Math.max(maxQueryLen, count);
    }
    this.backend.upload(this.#rows.rows(0, rows.length), words);
    return { numTokens, numRows: rows.length, decodeRows, maxQueryLen, numSamples };
  }

  view({ numSamples, ...extents }: StepExtents): StepTensors {
    const { numTokens, numRows } = extents;
    const first = (tensor: Tensor, count: number) => tensor.rows(0, count);
    return {
      rows: first(this.#rows, numRows),
      batch: {
        ...extents,
        tokenIds: first(this.#tokenIds, numTokens),
        positions: first(this.#positions, numTokens),
        slotMapping: first(this.#slotMapping, numTokens),
        cuSeqlensQ: first(this.#cuSeqlensQ, numRows + 1),
        contextLens: first(this.#contextLens, numRows),
        rowSlots: first(this.#rowSlots, numRows),
        blockTables: this.slots.blockTables,
        blockSize: this.limits.blockSize,
      },
      samples: {
        slots: first(this.#samples.slots, numSamples),
        positions: first(this.#samples.positions, numSamples),
        tokenIndices: first(this.#samples.tokenIndices, numSamples),
      },
      logits: this.logits(numSamples),
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
