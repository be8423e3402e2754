import type { KvGroup } from "../../src/base/kv-group.ts";
import { NotDrawn } from "../../src/base/not-drawn.ts";
import type {
  LogprobRows,
  ScheduledBatch,
  ScheduledRow,
  SlotSampling,
  SlotStates,
} from "../../src/runner/types.ts";
import { cell, draw, logprobOf, mix, saltOf, VOCAB } from "./oracle.ts";

/** A sequence in a slot. */
export interface Slot {
  /** On the "device": the tokens, and how many of them are in the cells. */
  tokens: number[];
  numComputed: number;
  readonly promptLength: number;
  readonly sampling: SlotSampling;
  /** Blocks by group of layers. */
  readonly tables: readonly number[][];
  /** What can be known at launch of `tokens.length` and `numComputed` after the steps in flight. */
  length: Range;
  computed: Range;
}

/** What a number may be, both ends included. */
export interface Range {
  least: number;
  most: number;
}

/** The fault "draw" shows in steps with masked rows only. */
export type Fault = "launch" | "draw" | "collect" | "nan" | "dead";

/** A step that was launched. */
export interface Step {
  batch: ScheduledBatch;
  /** The slots' occupants at launch. */
  slots: Slot[];
  /** Of each row and each group, the block of every table entry up to the last that the row writes. */
  blocks: number[][][];
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

interface State {
  readonly digest: number;
  readonly length: number;
}
const NO_STATE: State = { digest: 0, length: -1 };

export interface FakeDeviceOptions {
  numBlocks: number;
  blockSize: number;
  /** Default: one without a window. */
  groups?: readonly KvGroup[];
  /** Slots hold a state, without which nothing can be computed. Not together with drafts or a window. */
  states?: SlotStates | undefined;
  /** Asked once for each draft: whether it is the token that will be drawn. */
  guesses?(): boolean;
}

/** Where a device notes what it finds. */
export interface Findings {
  /** Notes the message unless the condition holds. */
  check(condition: boolean, message: string): void;
  /** Seeds of the sequences that a fault hit. */
  readonly victims: Set<bigint>;
}

/** KV cells and states of slots, and the tokens that rows compute from what they find there. */
export class FakeDevice {
  /** Drafts computed, and those of them that were accepted. */
  numDrafts = 0;
  numAccepted = 0;
  readonly #groups: readonly KvGroup[];
  readonly #values: Uint32Array;
  readonly #salts: Int32Array;
  readonly #nan: Uint8Array;
  /** By slot, and by place for snapshots: what a sequence's tokens led to, and how many they were. */
  readonly #states: State[] = [];
  readonly #snapshots: State[] = [];

  constructor(
    private readonly options: FakeDeviceOptions,
    private readonly findings: Findings,
  ) {
    const numCells = options.numBlocks * options.blockSize;
    this.#groups = options.groups ?? [{ reach: Infinity }];
    this.#values = new Uint32Array(numCells).fill(0xdeadbeef);
    this.#salts = new Int32Array(numCells).fill(-1);
    this.#nan = new Uint8Array(numCells);
  }

  /** A failed step leaves anything behind where it would have written, and its slots anywhere. */
  scribble({ batch, slots, done }: Step): void {
    batch.rows.forEach(({ count, sample }, i) => {
      if (done[i]) return;
      done[i] = true;
      const slot = slots[i]!;
      this.#states[batch.rows[i]!.slot] = NO_STATE;
      this.#keep({ batch }, batch.rows[i]!);
      for (let n = 0; n < count; n++) {
        for (const at of this.#cellsOf(slot, slot.numComputed)) {
          this.#values[at] = mix(slot.numComputed, 0xbad);
          this.#salts[at] = saltOf(slot.sampling.seed);
        }
        slot.numComputed++;
      }
      if (sample) slot.tokens.push(count % VOCAB);
    });
  }

  /** The state of the row's slot goes to the places that the step says. */
  #keep({ batch: { snapshots = [] } }: Pick<Step, "batch">, row: ScheduledRow): void {
    for (const { slot, snapshot } of snapshots.filter((each) => each.slot === row.slot)) {
      this.findings.check(
        snapshot >= 0 && snapshot < this.options.states!.numSnapshots,
        `snapshot ${snapshot} does not exist`,
      );
      this.#snapshots[snapshot] = this.#states[slot]!;
    }
  }

  /** The token's cells, one for each group. */
  #cellsOf({ tables }: Slot, position: number): readonly number[] {
    const { blockSize } = this.options;
    return tables.map(
      (table) => table[Math.floor(position / blockSize)]! * blockSize + (position % blockSize),
    );
  }

  /** Computes a row of a step for who is in its slot now, unless that has been done. */
  executeRow(step: Step, index: number, slot: Slot): void {
    if (step.done[index]) return;
    step.done[index] = true;
    const row = step.batch.rows[index]!;
    const { sampling, tokens, promptLength, numComputed: start } = slot;
    const salt = saltOf(sampling.seed);
    const isNan = step.fault === "nan" && step.nanRow === index;
    if (isNan) this.findings.victims.add(sampling.seed);
    const history = new History(salt);
    // Every group must tell the same of a token, as far as it reaches. What is out of reach of all is what it would have been.
    const read = (position: number): void => {
      const cells = this.#cellsOf(slot, position);
      const seen = cells.filter((_, group) => position > start - this.#groups[group]!.reach);
      for (const at of seen)
        this.findings.check(
          this.#salts[at] === salt,
          `slot ${row.slot} reads what it must not at position ${position}`,
        );
      const values = seen.map((at) => this.#values[at]!);
      if (values.length === 0) values.push(cell(history.previous, tokens[position]!, salt));
      const odd = values.find((value) => value !== values[0]);
      history.append(
        odd === undefined ? values[0]! : mix(values[0]!, odd),
        seen.some((at) => this.#nan[at] === 1),
      );
    };
    for (let p = 0; p < start; p++) read(p);
    const joined = step.batch.joins.find(({ slot: id }) => id === row.slot);
    if (joined?.snapshot !== undefined) this.#states[row.slot] = this.#snapshots[joined.snapshot]!;
    if (this.options.states && start > 0 && !this.findings.victims.has(sampling.seed)) {
      const { digest, length } = this.#states[row.slot] ?? NO_STATE;
      const isOwn = length === start && digest === history.digest;
      this.findings.check(
        isOwn,
        `slot ${row.slot} has the state of ${length} other tokens at position ${start}`,
      );
    }
    const compute = (token: number): void => {
      const position = slot.numComputed++;
      for (const at of this.#cellsOf(slot, position)) {
        this.#values[at] = cell(history.previous, token, salt);
        this.#salts[at] = salt;
        this.#nan[at] = isNan && position === start + row.count - 1 ? 1 : 0;
      }
      read(position);
    };
    const { count, drafts = 0 } = row;
    for (let n = 0; n < count - drafts; n++) compute(tokens[start + n]!);
    if (this.options.states) this.#states[row.slot] = { digest: history.digest, length: slot.numComputed };
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
      const guessed = target >= 0 && this.options.guesses?.() === true;
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
