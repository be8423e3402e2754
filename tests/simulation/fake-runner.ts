import { NotDrawn } from "../../src/base/not-drawn.ts";
import type {
  LogprobRows,
  RowMask,
  Runner,
  ScheduledBatch,
  ScheduledRow,
  SlotSampling,
  SlotStates,
  StepResult,
} from "../../src/runner/types.ts";
import { cell, draw, logprobOf, mix, saltOf, VOCAB } from "./oracle.ts";

/**
 * When a step's reads and writes happen: at launch; at collect; or at collect with the rows of later steps that depend
 * on nothing in flight computed first. Joins and block tables always change at launch, so what is freed or reused
 * while a step in flight still needs it comes out wrong.
 */
export type Execution = "eager" | "lazy" | "reordered";

/** The fault "draw" shows in steps with masked rows only. */
export type Fault = "launch" | "draw" | "collect" | "nan" | "dead";

export interface FakeRunnerOptions {
  numBlocks: number;
  blockSize: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  maxModelLen: number;
  /** Default: infinite. */
  attentionReach?: number;
  /** Slots hold a state, without which nothing can be computed. Not together with drafts or a reach. */
  states?: SlotStates | undefined;
  maxInFlight?: number;
  /** Drafts that a row may have. Default 0. */
  maxDrafts?: number;
  /** Asked once for each draft: whether it is the token that will be drawn. */
  guesses?(): boolean;
  execution?: Execution;
  /** Asked once for each launch: the fault of that step. */
  fault?(): Fault | undefined;
  /** Thrown for the fault "dead". */
  death?: Error;
}

interface Slot {
  /** On the "device": the tokens, and how many of them are in the cells. */
  tokens: number[];
  numComputed: number;
  readonly promptLength: number;
  readonly sampling: SlotSampling;
  readonly table: number[];
  /** What can be known at launch of `tokens.length` and `numComputed` after the steps in flight. */
  length: Range;
  computed: Range;
}

interface State {
  readonly digest: number;
  readonly length: number;
}
const NO_STATE: State = { digest: 0, length: -1 };

interface Range {
  least: number;
  most: number;
}

interface Step {
  batch: ScheduledBatch;
  /** The slots' occupants at launch. */
  slots: Slot[];
  /** The block of every table entry up to the last that the rows write. */
  blocks: number[][];
  /** Where each row starts at least, as far as is known. */
  starts: number[];
  fault: Fault | undefined;
  /** The row whose last position becomes NaN under the fault "nan". */
  nanRow: number;
  done: boolean[];
  /** Rows whose masks allow nothing. */
  nothing: ReadonlySet<number>;
  /** What each row drew. */
  drawn: number[][];
  result: {
    logprobs: Map<number, LogprobRows>;
    promptLogprobs: Map<number, LogprobRows>;
    logits: Map<number, Float32Array>;
    states: Map<number, Float32Array>;
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
  readonly maxDrafts: number;
  readonly attentionReach: number;
  readonly states: SlotStates | undefined;
  /** Seeds of the sequences that must not be launched ahead of their tokens. */
  readonly lockstep = new Set<bigint>();
  /** Drafts computed, and those of them that were accepted. */
  numDrafts = 0;
  numAccepted = 0;
  /** Everything that a batch or the cache did wrong. */
  readonly violations: string[] = [];
  /** Seeds of the sequences that a fault hit. */
  readonly victims = new Set<bigint>();
  readonly launched: ScheduledBatch[] = [];
  /** The masks of each step that had masked rows. */
  readonly masks: (readonly RowMask[])[] = [];
  disposed = false;
  readonly #options: FakeRunnerOptions;
  readonly #values: Uint32Array;
  readonly #salts: Int32Array;
  readonly #nan: Uint8Array;
  readonly #slots: (Slot | undefined)[] = [];
  /** By slot, and by place for snapshots: what a sequence's tokens led to, and how many they were. */
  readonly #states: State[] = [];
  readonly #snapshots: State[] = [];
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
    this.attentionReach = options.attentionReach ?? Infinity;
    this.states = options.states;
    this.#values = new Uint32Array(this.numBlocks * this.blockSize).fill(0xdeadbeef);
    this.#salts = new Int32Array(this.numBlocks * this.blockSize).fill(-1);
    this.#nan = new Uint8Array(this.numBlocks * this.blockSize);
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
        ...{ tokens: [...tokens], numComputed: numComputedTokens, promptLength, sampling, table: [] },
        ...{ length: exactly(tokens.length), computed: exactly(numComputedTokens) },
      };
    }
    for (const { slot, index, block } of batch.blockTableUpdates) {
      const { table } = this.#slots[slot]!;
      const joined = batch.joins.find((join) => join.slot === slot);
      const first = table.length === 0 && joined ? this.#firstSeen(joined.numComputedTokens) : table.length;
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
      this.#scribble(step);
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
      this.#scribble(step);
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
   * @returns the blocks up to the last that the row writes.
   */
  #checkRow(row: ScheduledRow, slot: Slot): number[] {
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
    const blocks = slot.table.slice(0, Math.ceil(end / this.blockSize));
    this.#check(end <= slot.table.length * this.blockSize, `slot ${id}: no block for position ${end - 1}`);
    const written = blocks.slice(Math.floor(computed.least / this.blockSize));
    computed.least += count - drafts;
    computed.most = end;
    if (sample) {
      length.least++;
      length.most += drafts + 1;
    }
    for (const step of this.#inFlight) {
      step.blocks.forEach((used, i) => {
        if (step.slots[i] === slot) return;
        const seen = used.slice(this.#firstSeen(step.starts[i]!));
        for (const block of written) this.#check(!seen.includes(block), `block ${block} rewritten in flight`);
      });
    }
    return blocks;
  }

  /** The table's first entry that rows from `position` on see. */
  #firstSeen(position: number): number {
    return Math.max(0, Math.floor((position + 1 - this.attentionReach) / this.blockSize));
  }

  #execute(step: Step): void {
    if (step.fault === "collect") this.#scribble(step);
    else for (let i = 0; i < step.slots.length; i++) this.#executeRow(step, i);
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

  /** A failed step leaves anything behind where it would have written, and its slots anywhere. */
  #scribble({ batch, slots, done }: Step): void {
    batch.rows.forEach(({ count, sample }, i) => {
      if (done[i]) return;
      done[i] = true;
      const slot = slots[i]!;
      this.#states[batch.rows[i]!.slot] = NO_STATE;
      this.#keep({ batch }, batch.rows[i]!);
      for (let n = 0; n < count; n++) {
        const at = this.#at(slot, slot.numComputed);
        this.#values[at] = mix(slot.numComputed++, 0xbad);
        this.#salts[at] = saltOf(slot.sampling.seed);
      }
      if (sample) slot.tokens.push(count % VOCAB);
    });
  }

  /** The state of the row's slot goes to the places that the step says. */
  #keep({ batch: { snapshots = [] } }: Pick<Step, "batch">, row: ScheduledRow): void {
    for (const { slot, snapshot } of snapshots.filter((each) => each.slot === row.slot)) {
      this.#check(
        snapshot >= 0 && snapshot < this.states!.numSnapshots,
        `snapshot ${snapshot} does not exist`,
      );
      this.#snapshots[snapshot] = this.#states[slot]!;
    }
  }

  #at({ table }: Slot, position: number): number {
    return table[Math.floor(position / this.blockSize)]! * this.blockSize + (position % this.blockSize);
  }

  #executeRow(step: Step, index: number): void {
    if (step.done[index]) return;
    step.done[index] = true;
    const row = step.batch.rows[index]!;
    const slot = this.#slots[row.slot]!;
    const { sampling, tokens, promptLength, numComputed: start } = slot;
    const salt = saltOf(sampling.seed);
    const isNan = step.fault === "nan" && step.nanRow === index;
    if (isNan) this.victims.add(sampling.seed);
    const history = new History(salt);
    const read = (position: number): void => {
      const at = this.#at(slot, position);
      this.#check(
        this.#salts[at] === salt,
        `slot ${row.slot} reads what it must not at position ${position}`,
      );
      history.append(this.#values[at]!, this.#nan[at] === 1);
    };
    // What is out of reach is what it would have been, wherever it was.
    const firstRead = Math.max(0, start + 1 - this.attentionReach);
    for (let p = 0; p < firstRead; p++) history.append(cell(history.previous, tokens[p]!, salt), false);
    for (let p = firstRead; p < start; p++) read(p);
    const joined = step.batch.joins.find(({ slot: id }) => id === row.slot);
    if (joined?.snapshot !== undefined) this.#states[row.slot] = this.#snapshots[joined.snapshot]!;
    if (this.states && start > 0 && !this.victims.has(sampling.seed)) {
      const { digest, length } = this.#states[row.slot] ?? NO_STATE;
      const isOwn = length === start && digest === history.digest;
      this.#check(isOwn, `slot ${row.slot} has the state of ${length} other tokens at position ${start}`);
    }
    const compute = (token: number): void => {
      const position = slot.numComputed++;
      const at = this.#at(slot, position);
      this.#values[at] = cell(history.previous, token, salt);
      this.#salts[at] = salt;
      this.#nan[at] = isNan && position === start + row.count - 1 ? 1 : 0;
      read(position);
    };
    const { count, drafts = 0 } = row;
    for (let n = 0; n < count - drafts; n++) compute(tokens[start + n]!);
    if (this.states) this.#states[row.slot] = { digest: history.digest, length: slot.numComputed };
    this.#keep(step, row);
    const { result } = step;
    const seen = history.digests.slice(start);
    if (row.promptLogprobs !== undefined) {
      const predicted = Math.min(count, promptLength - 1 - start);
      const chosen = tokens.slice(start + 1, start + 1 + predicted);
      result.promptLogprobs.set(index, logprobRows(seen.slice(0, predicted), chosen, row.promptLogprobs));
    }
    if (row.logits) {
      const logits = seen.flatMap((d) => Array.from({ length: VOCAB }, (_, v) => logprobOf(d, v)));
      result.logits.set(index, Float32Array.from(logits));
    }
    if (!row.sample) return;
    if (step.nothing.has(index)) {
      step.drawn[index] = [NotDrawn.nothingAllowed];
      return;
    }
    const drawn = this.#verify(slot, drafts, history, compute);
    step.drawn[index] = drawn;
    const from = history.digests.slice(count - drafts - 1 + start).slice(0, drawn.length);
    if (row.logprobs !== undefined) result.logprobs.set(index, logprobRows(from, drawn, row.logprobs));
  }

  /** Draws the next token, and as long as it is the one drafted, computes it and draws the next. All drafts are computed. */
  #verify(slot: Slot, drafts: number, history: History, compute: (token: number) => void): number[] {
    const { tokens, sampling } = slot;
    const { seed, bannedTokens, bannedUntil } = sampling;
    const drawn: number[] = [];
    let accepted = true;
    for (let left = drafts; ; left--) {
      const target = history.finite
        ? draw(history.digest, seed, tokens.length, bannedTokens, bannedUntil)
        : -1;
      if (accepted) {
        drawn.push(target);
        tokens.push(Math.max(target, 0));
      }
      if (left === 0) break;
      const guessed = target >= 0 && this.#options.guesses?.() === true;
      accepted &&= guessed;
      this.numDrafts++;
      if (accepted) this.numAccepted++;
      compute(guessed ? target : (target + 1) % VOCAB);
    }
    // The next step computes the last token drawn; what the rejected drafts left behind is overwritten.
    slot.numComputed = tokens.length - 1;
    return drawn;
  }
}

/** What a row has read so far. */
class History {
  /** After each position. */
  readonly digests: number[] = [];
  digest = 0;
  finite = true;

  constructor(public previous: number) {}

  append(value: number, isNan: boolean): void {
    this.previous = value;
    this.digest = mix(this.digest, value);
    this.digests.push(this.digest);
    if (isNan) this.finite = false;
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
