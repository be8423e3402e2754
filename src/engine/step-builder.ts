import type {
  BlockTableUpdate,
  ScheduledBatch,
  ScheduledRow,
  SlotJoin,
  StateSnapshot,
} from "../runner/types.ts";
import type { Sequence } from "./sequence.ts";

/** A batch and the sequences of its rows, which all joins and block-table updates belong to. */
export interface ScheduledStep {
  readonly batch: ScheduledBatch;
  /** The sequence of each row. */
  readonly sequences: readonly Sequence[];
  /** The sequences that just got a slot. */
  readonly admitted: readonly Sequence[];
}

/** More than a step has rows; with a length, which has 31 bits, as exact as a number is. A power of two. */
const MAX_PLACES = 2 ** 20;

/**
 * Collects a batch: rows of one token first, but for those of prompts with `batchInvariant`, and of these the longest contexts
 * first. Attention takes rows in this order, and when those that it starts last are the shortest, all of the GPU ends at about
 * the same time (Graham's rule of the longest job first, 1969).
 */
export class StepBuilder {
  budget: number;
  readonly #joins: SlotJoin[] = [];
  readonly #updates: BlockTableUpdate[] = [];
  readonly #rows: ScheduledRow[] = [];
  readonly #snapshots: StateSnapshot[] = [];
  readonly #sequences: Sequence[] = [];
  readonly #chunks: ScheduledRow[] = [];
  readonly #chunkSequences: Sequence[] = [];
  readonly #admitted: Sequence[] = [];
  #numTokens = 0;

  constructor(
    budget: number,
    private readonly batchInvariant: boolean,
  ) {
    this.budget = budget;
  }

  join(sequence: Sequence, snapshot?: number): void {
    const { slot, length, promptLength, numComputedTokens, sampling } = sequence;
    const tokens = sequence.tokens.slice(0, length);
    this.#admitted.push(sequence);
    const restored = snapshot === undefined ? undefined : { snapshot };
    this.#joins.push({ slot, tokens, promptLength, numComputedTokens, sampling, ...restored });
  }

  assign({ slot, blockTables }: Sequence, group: number, block: number): void {
    const { blocks } = blockTables[group]!;
    this.#updates.push({ slot, group, index: blocks.length, block });
    blocks.push(block);
  }

  keep(slot: number, snapshot: number): void {
    this.#snapshots.push({ slot, snapshot });
  }

  compute(sequence: Sequence, count: number, sample: boolean, drafts: number): void {
    const { slot, numScheduledTokens, promptLength, logprobs, promptLogprobs, logits, states, matcher } =
      sequence;
    const row: { -readonly [K in keyof ScheduledRow]: ScheduledRow[K] } = { slot, count, sample };
    if (drafts > 0) row.drafts = drafts;
    if (sample && matcher) row.masked = true;
    if (sample && logprobs !== undefined) row.logprobs = logprobs;
    if (promptLogprobs !== undefined && numScheduledTokens < promptLength)
      row.promptLogprobs = promptLogprobs;
    if (logits) row.logits = true;
    if (states) row.states = true;
    sequence.schedule(row);
    const isDecode = count === 1 && !(this.batchInvariant && numScheduledTokens < promptLength);
    (isDecode ? this.#rows : this.#chunks).push(row);
    (isDecode ? this.#sequences : this.#chunkSequences).push(sequence);
    this.budget -= count;
    this.#numTokens += count;
  }

  /** Undefined when there is nothing to compute. */
  build(): ScheduledStep | undefined {
    if (this.#numTokens === 0) return undefined;
    const { rows, sequences } = this.#longestFirst();
    for (const row of this.#chunks) rows.push(row);
    for (const sequence of this.#chunkSequences) sequences.push(sequence);
    return {
      batch: {
        joins: this.#joins,
        blockTableUpdates: this.#updates,
        rows,
        ...(this.#snapshots.length > 0 && { snapshots: this.#snapshots }),
        decodeRows: this.#rows.length,
        numTokens: this.#numTokens,
      },
      sequences,
      admitted: this.#admitted,
    };
  }

  /** The rows of one token, those of the longest contexts first, and of as long ones in order of arrival. */
  #longestFirst(): { readonly rows: ScheduledRow[]; readonly sequences: Sequence[] } {
    const last = this.#rows.length - 1;
    // A length and a place in one number: those sort several times as fast as places do that are compared by their lengths.
    const keys = new Float64Array(last + 1);
    for (let i = 0; i <= last; i++)
      keys[i] = this.#sequences[i]!.numScheduledTokens * MAX_PLACES + (last - i);
    keys.sort();
    const rows: ScheduledRow[] = [];
    const sequences: Sequence[] = [];
    for (let at = last; at >= 0; at--) {
      const i = last - (keys[at]! & (MAX_PLACES - 1));
      rows.push(this.#rows[i]!);
      sequences.push(this.#sequences[i]!);
    }
    return { rows, sequences };
  }
}
