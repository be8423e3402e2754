import type {
  LogprobRows,
  Runner,
  ScheduledBatch,
  ScheduledRow,
  SlotSampling,
  StepResult,
} from "../../src/runner/types.ts";
import { cell, draw, logprobOf, mix, saltOf, VOCAB } from "./oracle.ts";

/**
 * When a step's reads and writes happen: at launch; at collect; or at collect with the rows of later steps that depend
 * on nothing in flight computed first. Joins and block tables always change at launch, so what is freed or reused
 * while a step in flight still needs it comes out wrong.
 */
export type Execution = "eager" | "lazy" | "reordered";

export type Fault = "launch" | "collect" | "nan" | "dead";

export interface FakeRunnerOptions {
  numBlocks: number;
  blockSize: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  maxModelLen: number;
  maxInFlight?: number;
  execution?: Execution;
  /** Asked once for each launch: the fault of that step. */
  fault?(): Fault | undefined;
  /** Thrown for the fault "dead". */
  death?: Error;
}

interface Slot {
  tokens: number[];
  promptLength: number;
  sampling: SlotSampling;
  table: number[];
  /** Where the next row must start; undefined before the first row. */
  next: number | undefined;
}

interface Step {
  batch: ScheduledBatch;
  /** The slots' occupants at launch. */
  slots: Slot[];
  /** The block of every table entry that the rows read or write. */
  blocks: number[][];
  fault: Fault | undefined;
  /** The row that becomes NaN under the fault "nan". */
  nanRow: number;
  done: boolean[];
  result: {
    tokens: Int32Array;
    logprobs: Map<number, LogprobRows>;
    promptLogprobs: Map<number, LogprobRows>;
    logits: Map<number, Float32Array>;
  };
}

/** A runner that computes tokens from what it finds in the KV cells of the block tables, and checks each batch. */
export class FakeRunner implements Runner {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly vocabSize = VOCAB;
  readonly maxInFlight: number;
  /** Everything that a batch or the cache did wrong. */
  readonly violations: string[] = [];
  /** Seeds of the sequences that a fault hit. */
  readonly victims = new Set<bigint>();
  readonly launched: ScheduledBatch[] = [];
  disposed = false;
  readonly #options: FakeRunnerOptions;
  readonly #values: Uint32Array;
  readonly #salts: Int32Array;
  readonly #nan: Uint8Array;
  readonly #slots: (Slot | undefined)[] = [];
  readonly #inFlight: Step[] = [];

  constructor(options: FakeRunnerOptions) {
    this.#options = options;
    this.numBlocks = options.numBlocks;
    this.blockSize = options.blockSize;
    this.maxNumSeqs = options.maxNumSeqs;
    this.maxModelLen = options.maxModelLen;
    this.maxInFlight = options.maxInFlight ?? 2;
    this.#values = new Uint32Array(this.numBlocks * this.blockSize).fill(0xdeadbeef);
    this.#salts = new Int32Array(this.numBlocks * this.blockSize).fill(-1);
    this.#nan = new Uint8Array(this.numBlocks * this.blockSize);
  }

  launch(batch: ScheduledBatch): void {
    const fault = this.#options.fault?.();
    this.launched.push(batch);
    this.#checkBatch(batch);
    for (const { slot, tokens, promptLength, sampling } of batch.joins) {
      for (const step of this.#inFlight)
        this.#check(!step.batch.rows.some((row) => row.slot === slot), `slot ${slot} reused in flight`);
      this.#slots[slot] = { tokens: [...tokens], promptLength, sampling, table: [], next: undefined };
    }
    for (const { slot, index, block } of batch.blockTableUpdates) {
      const { table } = this.#slots[slot]!;
      this.#check(index === table.length, `slot ${slot}: table entry ${index} after ${table.length}`);
      this.#check(block >= 0 && block < this.numBlocks, `block ${block} does not exist`);
      table[index] = block;
    }
    const slots = batch.rows.map((row) => this.#slots[row.slot]!);
    const blocks = batch.rows.map((row, i) => this.#checkRow(row, slots[i]!));
    const rowCount = batch.rows.length;
    const step: Step = {
      ...{ batch, slots, blocks, fault, nanRow: this.launched.length % rowCount },
      done: new Array(rowCount).fill(false),
      result: {
        tokens: new Int32Array(rowCount).fill(-7),
        ...{ logprobs: new Map(), promptLogprobs: new Map(), logits: new Map() },
      },
    };
    if (fault === "launch" || fault === "dead" || fault === "collect")
      for (const slot of slots) this.victims.add(slot.sampling.seed);
    if (fault === "launch" || fault === "dead") {
      this.#scribble(step);
      throw fault === "dead" ? this.#options.death : new Error("launch failed");
    }
    this.#check(this.#inFlight.length < this.maxInFlight, "too many steps in flight");
    this.#inFlight.push(step);
    if (this.#options.execution === "eager") this.#execute(step);
  }

  collect(): StepResult {
    const step = this.#inFlight[0];
    if (!step) throw new Error("nothing in flight");
    if (this.#options.execution === "reordered") {
      const later = this.#inFlight[1];
      later?.slots.forEach((slot, i) => {
        if (!step.slots.includes(slot)) this.#executeRow(later, i);
      });
    }
    this.#execute(step);
    this.#inFlight.shift();
    if (step.fault === "collect") throw new Error("step failed");
    return step.result;
  }

  dispose(): void {
    this.disposed = true;
  }

  #check(condition: boolean, message: string): void {
    if (!condition) this.violations.push(message);
  }

  #checkBatch({ rows, joins, blockTableUpdates, decodeRows, numTokens }: ScheduledBatch): void {
    const slots = new Set(rows.map((row) => row.slot));
    this.#check(rows.length > 0, "an empty batch");
    this.#check(slots.size === rows.length, "two rows of one slot");
    this.#check(rows.length <= this.maxNumSeqs, "too many rows");
    this.#check(numTokens === rows.reduce((sum, row) => sum + row.count, 0), "numTokens is not the sum");
    this.#check(numTokens <= this.#options.maxNumBatchedTokens, "over the token budget");
    this.#check(
      rows.every((row, i) => (row.count === 1) === i < decodeRows),
      "decode rows are not first",
    );
    for (const { slot } of [...joins, ...blockTableUpdates])
      this.#check(slots.has(slot), `slot ${slot} changes without a row`);
    for (const { slot } of joins)
      this.#check(slot >= 0 && slot < this.maxNumSeqs, `slot ${slot} does not exist`);
  }

  /** @returns the blocks that the row reads or writes. */
  #checkRow({ slot: id, start, count, sample, promptLogprobs }: ScheduledRow, slot: Slot): number[] {
    const end = start + count;
    const inPrompt = promptLogprobs === undefined || end <= slot.promptLength;
    this.#check(inPrompt, `slot ${id}: prompt log-probabilities of the output`);
    this.#check(count > 0 && end <= this.maxModelLen, `slot ${id}: row [${start}, ${end})`);
    this.#check(
      slot.next === undefined || slot.next === start,
      `slot ${id}: row at ${start}, not ${slot.next}`,
    );
    this.#check(start >= slot.tokens.length || end <= slot.tokens.length, `slot ${id}: tokens unknown`);
    this.#check(!sample || end >= slot.tokens.length, `slot ${id}: samples inside its known tokens`);
    slot.next = end;
    const blocks = slot.table.slice(0, Math.ceil(end / this.blockSize));
    this.#check(end <= slot.table.length * this.blockSize, `slot ${id}: no block for position ${end - 1}`);
    const written = blocks.slice(Math.floor(start / this.blockSize));
    for (const step of this.#inFlight) {
      step.blocks.forEach((used, i) => {
        if (step.slots[i] === slot) return;
        for (const block of written) this.#check(!used.includes(block), `block ${block} rewritten in flight`);
      });
    }
    return blocks;
  }

  #execute(step: Step): void {
    if (step.fault === "collect") this.#scribble(step);
    else for (let i = 0; i < step.slots.length; i++) this.#executeRow(step, i);
  }

  /** A failed step leaves anything behind where it would have written. */
  #scribble({ batch, slots }: Step): void {
    batch.rows.forEach(({ start, count }, i) => {
      for (let p = start; p < start + count; p++) {
        const at = this.#at(slots[i]!, p);
        this.#values[at] = mix(p, 0xbad);
        this.#salts[at] = saltOf(slots[i]!.sampling.seed);
      }
    });
  }

  #at({ table }: Slot, position: number): number {
    return table[Math.floor(position / this.blockSize)]! * this.blockSize + (position % this.blockSize);
  }

  #executeRow(step: Step, index: number): void {
    if (step.done[index]) return;
    step.done[index] = true;
    const row = step.batch.rows[index]!;
    const slot = this.#slots[row.slot]!;
    const { seed, bannedTokens, bannedUntil } = slot.sampling;
    const salt = saltOf(seed);
    const end = row.start + row.count;
    const { result } = step;
    let digest = 0;
    let previous = salt;
    let finite = true;
    const seen: number[] = [];
    for (let p = 0; p < end; p++) {
      const at = this.#at(slot, p);
      if (p >= row.start) {
        this.#values[at] = cell(previous, slot.tokens[p]!, salt);
        this.#salts[at] = salt;
        this.#nan[at] = step.fault === "nan" && step.nanRow === index ? 1 : 0;
      }
      this.#check(this.#salts[at] === salt, `slot ${row.slot} reads what it must not at position ${p}`);
      if (this.#nan[at] === 1) finite = false;
      previous = this.#values[at]!;
      digest = mix(digest, previous);
      if (p >= row.start) seen.push(digest);
    }
    if (step.fault === "nan" && step.nanRow === index) this.victims.add(seed);
    if (row.promptLogprobs !== undefined) {
      const count = Math.min(row.count, slot.promptLength - 1 - row.start);
      const chosen = slot.tokens.slice(row.start + 1, row.start + 1 + count);
      result.promptLogprobs.set(index, logprobRows(seen.slice(0, count), chosen, row.promptLogprobs));
    }
    if (row.logits) {
      const logits = seen.flatMap((d) => Array.from({ length: VOCAB }, (_, v) => logprobOf(d, v)));
      result.logits.set(index, Float32Array.from(logits));
    }
    if (!row.sample) return;
    const token = finite ? draw(digest, seed, end, bannedTokens, bannedUntil) : -1;
    result.tokens[index] = token;
    slot.tokens[end] = Math.max(token, 0);
    if (row.logprobs !== undefined) result.logprobs.set(index, logprobRows([digest], [token], row.logprobs));
  }
}

function logprobRows(seen: number[], chosen: number[], topCount: number): LogprobRows {
  const top = seen.flatMap((_, i) => Array.from({ length: topCount }, (_, k) => (chosen[i]! + k) % VOCAB));
  return {
    chosenIds: Int32Array.from(chosen),
    chosenLogprobs: Float32Array.from(seen, (digest, i) => logprobOf(digest, chosen[i]!)),
    chosenRanks: new Int32Array(seen.length).fill(1),
    topIds: Int32Array.from(top),
    topLogprobs: Float32Array.from(top, (id, i) => logprobOf(seen[Math.floor(i / topCount)]!, id)),
    topCount,
  };
}
