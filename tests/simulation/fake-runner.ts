import { firstSeenBlock, type KvGroup } from "../../src/base/kv-group.ts";
import type {
  RowMask,
  Runner,
  ScheduledBatch,
  ScheduledRow,
  SlotStates,
  StepResult,
} from "../../src/runner/types.ts";
import {
  FakeDevice,
  type FakeDeviceOptions,
  type Fault,
  type Range,
  type Slot,
  type Step,
} from "./fake-device.ts";
import { VOCAB } from "./oracle.ts";

/**
 * When a step's reads and writes happen: at launch; at collect; or at collect with the rows of later steps that depend
 * on nothing in flight computed first. Joins and block tables always change at launch, so what is freed or reused
 * while a step in flight still needs it comes out wrong.
 */
export type Execution = "eager" | "lazy" | "reordered";

export interface FakeRunnerOptions extends FakeDeviceOptions {
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  maxModelLen: number;
  maxInFlight?: number;
  /** Drafts that a row may have. Default 0. */
  maxDrafts?: number;
  execution?: Execution;
  /** Asked once for each launch: the fault of that step. */
  fault?(): Fault | undefined;
  /** Thrown for the fault "dead". */
  death?: Error;
}

/** A runner that computes tokens from what it finds in the KV cells of the block tables, and checks each batch. */
export class FakeRunner implements Runner {
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  readonly maxModelLen: number;
  readonly vocabSize = VOCAB;
  readonly maxInFlight: number;
  readonly maxDrafts: number;
  readonly groups: readonly KvGroup[];
  readonly states: SlotStates | undefined;
  /** Seeds of the sequences that must not be launched ahead of their tokens. */
  readonly lockstep = new Set<bigint>();
  /** Everything that a batch or the cache did wrong. */
  readonly violations: string[] = [];
  /** Seeds of the sequences that a fault hit. */
  readonly victims = new Set<bigint>();
  readonly launched: ScheduledBatch[] = [];
  /** The masks of each step that had masked rows. */
  readonly masks: (readonly RowMask[])[] = [];
  disposed = false;
  readonly #options: FakeRunnerOptions;
  readonly #device: FakeDevice;
  readonly #slots: (Slot | undefined)[] = [];
  readonly #inFlight: Step[] = [];
  /** The step that was launched last has masked rows, and has not been drawn. */
  #awaitsMasks = false;

  constructor(options: FakeRunnerOptions) {
    this.#options = options;
    this.numBlocks = options.numBlocks;
    this.blockSize = options.blockSize;
    this.maxNumSeqs = options.maxNumSeqs;
    this.maxModelLen = options.maxModelLen;
    this.maxInFlight = options.maxInFlight ?? 2;
    this.maxDrafts = options.maxDrafts ?? 0;
    this.groups = options.groups ?? [{ reach: Infinity }];
    this.states = options.states;
    this.#device = new FakeDevice(options, {
      check: (condition, message) => this.#check(condition, message),
      victims: this.victims,
    });
  }

  /** Drafts computed. */
  get numDrafts(): number {
    return this.#device.numDrafts;
  }

  /** Those of the drafts that were accepted. */
  get numAccepted(): number {
    return this.#device.numAccepted;
  }

  launch(batch: ScheduledBatch): void {
    const fault = this.#options.fault?.();
    this.#check(!this.#awaitsMasks, "launched before the step before was drawn");
    this.launched.push(batch);
    this.#checkBatch(batch);
    for (const { slot, tokens, promptLength, numComputedTokens, sampling } of batch.joins) {
      for (const step of this.#inFlight)
        this.#check(!step.batch.rows.some((row) => row.slot === slot), `slot ${slot} reused in flight`);
      this.#check(numComputedTokens < tokens.length, `slot ${slot}: nothing is left to compute`);
      const exactly = (count: number): Range => ({ least: count, most: count });
      this.#slots[slot] = {
        ...{ tokens: [...tokens], numComputed: numComputedTokens, promptLength, sampling },
        tables: this.groups.map(() => []),
        ...{ length: exactly(tokens.length), computed: exactly(numComputedTokens) },
      };
    }
    for (const { slot, group, index, block } of batch.blockTableUpdates) {
      const table = this.#slots[slot]!.tables[group]!;
      const joined = batch.joins.find((join) => join.slot === slot);
      const first =
        table.length === 0 && joined ? this.#firstSeen(group, joined.numComputedTokens) : table.length;
      this.#check(index === first, `slot ${slot}: table entry ${index} after ${table.length}`);
      this.#check(block >= 0 && block < this.numBlocks, `block ${block} does not exist`);
      table[index] = block;
    }
    const slots = batch.rows.map((row) => this.#slots[row.slot]!);
    const starts = slots.map(({ computed }) => computed.least);
    const blocks = batch.rows.map((row, i) => this.#checkRow(row, slots[i]!));
    const rowCount = batch.rows.length;
    const step: Step = {
      ...{ batch, slots, blocks, starts, fault, nanRow: this.launched.length % rowCount },
      done: new Array(rowCount).fill(false),
      nothing: new Set(),
      drawn: batch.rows.map(() => []),
      result: { logprobs: new Map(), promptLogprobs: new Map(), logits: new Map(), states: new Map() },
    };
    if (fault === "launch" || fault === "dead" || fault === "collect")
      for (const slot of slots) this.victims.add(slot.sampling.seed);
    if (fault === "launch" || fault === "dead") {
      for (const earlier of this.#inFlight) this.#execute(earlier);
      this.#device.scribble(step);
      throw fault === "dead" ? this.#options.death : new Error("launch failed");
    }
    this.#check(this.#inFlight.length < this.maxInFlight, "too many steps in flight");
    this.#inFlight.push(step);
    this.#awaitsMasks = batch.rows.some(({ masked }) => masked);
    if (this.#options.execution === "eager" && !this.#awaitsMasks) this.#execute(step);
  }

  draw(masks: readonly RowMask[]): void {
    const step = this.#inFlight.at(-1)!;
    this.#check(this.#awaitsMasks, "drawn twice, or without masks");
    for (const { row } of masks) this.#check(step.batch.rows[row]?.masked === true, `row ${row} has a mask`);
    this.#awaitsMasks = false;
    this.masks.push(masks);
    step.nothing = new Set(masks.flatMap(({ row, mask }) => (mask.some((word) => word > 0) ? [] : [row])));
    if (step.fault === "draw") {
      this.#inFlight.pop();
      for (const slot of step.slots) this.victims.add(slot.sampling.seed);
      this.#device.scribble(step);
      throw new Error("draw failed");
    }
    if (this.#options.execution === "eager") this.#execute(step);
  }

  collect(): StepResult {
    const step = this.#inFlight[0];
    if (!step) throw new Error("nothing in flight");
    this.#check(this.#inFlight.length > 1 || !this.#awaitsMasks, "collected before it was drawn");
    if (this.#options.execution === "reordered") {
      const later = this.#inFlight[1];
      later?.slots.forEach((slot, i) => {
        if (!this.#awaitsMasks && !step.slots.includes(slot)) this.#executeRow(later, i);
      });
    }
    this.#execute(step);
    this.#inFlight.shift();
    if (step.fault === "collect") throw new Error("step failed");
    for (const [i, slot] of step.slots.entries())
      this.#narrow(slot, step.batch.rows[i]!, step.drawn[i]!.length);
    const ends = step.drawn.map((_, i) => step.drawn.slice(0, i + 1).flat().length);
    return {
      tokens: Int32Array.from(step.drawn.flat()),
      offsets: Int32Array.of(0, ...ends),
      ...step.result,
    };
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

  /**
   * Checks a row against what is known of its slot, and widens that by what the row may come to.
   * @returns the blocks of each group up to the last that the row writes.
   */
  #checkRow(row: ScheduledRow, slot: Slot): number[][] {
    const { slot: id, count, sample, drafts = 0, promptLogprobs } = row;
    const { computed, length } = slot;
    const end = computed.most + count;
    const inPrompt = promptLogprobs === undefined || end <= slot.promptLength;
    this.#check(inPrompt, `slot ${id}: prompt log-probabilities of the output`);
    this.#check(count > drafts && end <= this.maxModelLen, `slot ${id}: row [${computed.most}, ${end})`);
    this.#check(end - drafts <= length.most, `slot ${id}: tokens unknown`);
    this.#check(
      sample === (end - drafts === length.most) || row.logits === true,
      `slot ${id}: samples elsewhere`,
    );
    this.#check(drafts === 0 || (sample && drafts <= this.maxDrafts), `slot ${id}: ${drafts} drafts`);
    const ahead = this.lockstep.has(slot.sampling.seed) && this.#isPending(slot);
    this.#check(!ahead, `slot ${id} is launched ahead of its tokens`);
    const blocks = slot.tables.map((table) => table.slice(0, Math.ceil(end / this.blockSize)));
    for (const table of slot.tables)
      this.#check(end <= table.length * this.blockSize, `slot ${id}: no block for position ${end - 1}`);
    const written = blocks.flatMap((table) => table.slice(Math.floor(computed.least / this.blockSize)));
    computed.least += count - drafts;
    computed.most = end;
    if (sample) {
      length.least++;
      length.most += drafts + 1;
    }
    for (const step of this.#inFlight) {
      step.blocks.forEach((used, i) => {
        if (step.slots[i] === slot) return;
        const seen = used.flatMap((table, group) => table.slice(this.#firstSeen(group, step.starts[i]!)));
        for (const block of written) this.#check(!seen.includes(block), `block ${block} rewritten in flight`);
      });
    }
    return blocks;
  }

  /** The first entry of a group's table that rows from `position` on see. */
  #firstSeen(group: number, position: number): number {
    return firstSeenBlock(this.groups[group]!, position, this.blockSize);
  }

  #execute(step: Step): void {
    if (step.fault === "collect") this.#device.scribble(step);
    else for (let i = 0; i < step.slots.length; i++) this.#executeRow(step, i);
  }

  #executeRow(step: Step, index: number): void {
    this.#device.executeRow(step, index, this.#slots[step.batch.rows[index]!.slot]!);
  }

  /** A row has been collected: what is known of its slot comes closer. */
  #narrow(slot: Slot, { sample, drafts = 0 }: ScheduledRow, drawn: number): void {
    const { computed, length } = slot;
    if (!sample) return;
    for (const { slots, starts } of this.#inFlight)
      for (const [i, each] of slots.entries()) if (each === slot) starts[i]! += drawn - 1;
    const rejected = drafts + 1 - drawn;
    computed.most -= rejected;
    length.most -= rejected;
    computed.least += drawn - 1;
    length.least += drawn - 1;
  }

  /** A step in flight draws a token of the slot. */
  #isPending(slot: Slot): boolean {
    return this.#inFlight.some(({ slots, batch }) =>
      batch.rows.some(({ sample }, i) => sample && slots[i] === slot),
    );
  }
}
