/**
 * The seam between policy (engine/) and mechanism (runner/): plain data. The engine decides which tokens of which
 * sequences are computed in a step and into which KV blocks; the runner computes them and draws the next tokens.
 */

import type { KvGroup } from "../base/kv-group.ts";

/** A sequence takes a slot: everything the runner must know about it until it leaves. */
export interface SlotJoin {
  readonly slot: number;
  /** All tokens known so far: the prompt and, after a preemption, the output that must be recomputed. */
  readonly tokens: Int32Array;
  readonly promptLength: number;
  /** Leading tokens that are in the KV cache already: less than all. */
  readonly numComputedTokens: number;
  /** The place of the state after those tokens, of models that keep one. */
  readonly snapshot?: number | undefined;
  readonly sampling: SlotSampling;
}

/** The sampling parameters that the device applies. Token ids are below the vocabulary's size. */
export interface SlotSampling {
  readonly temperature: number;
  readonly topP: number;
  /** 0 = off. */
  readonly topK: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  /** Unsigned 64-bit. */
  readonly seed: bigint;
  readonly logitBias: readonly (readonly [token: number, bias: number])[];
  /** Tokens that cannot be drawn for positions below `bannedUntil` (end-of-sequence ids under `minTokens`). */
  readonly bannedTokens: readonly number[];
  readonly bannedUntil: number;
  readonly allowedTokenIds: readonly number[] | undefined;
  /** Every row that samples gets a mask of its allowed tokens. Not together with `allowedTokenIds`. Default false. */
  readonly masked?: boolean;
  /** Token sequences whose last token is banned when the others are the tail of the text. */
  readonly badWords: readonly (readonly number[])[];
}

/** Entry `index` of a slot's block table, the one of a group of layers, becomes `block`. */
export interface BlockTableUpdate {
  readonly slot: number;
  readonly group: number;
  readonly index: number;
  readonly block: number;
}

/** Tokens of one sequence to compute in this step. They start where the step before, or the join, left off. */
export interface ScheduledRow {
  readonly slot: number;
  /** Tokens to compute, at least 1. */
  readonly count: number;
  /** Draw the token that follows the last one. */
  readonly sample: boolean;
  /**
   * With `sample`: so many of the tokens, the last ones, are guesses of the runner's own. The row draws the token that
   * follows each of them that is guessed right, too: 1 to `drafts` + 1 tokens. Default 0.
   */
  readonly drafts?: number;
  /** With `sample`, of a masked slot: the step draws nothing before `Runner.draw` has brought its mask. Default false. */
  readonly masked?: boolean;
  /** With `sample`: log-probabilities of this many top tokens and of the drawn one. */
  readonly logprobs?: number;
  /** Log-probabilities of this many top tokens, and of the next token, for each computed prompt position. */
  readonly promptLogprobs?: number;
  /** Return the full logits of every computed position. */
  readonly logits?: boolean;
  /** Return the hidden states of every computed position, after the final norm. */
  readonly states?: boolean;
}

/**
 * Joins and block-table updates belong to slots that have a row in the same batch. A slot or block is not reused while
 * a step in flight has it.
 */
export interface ScheduledBatch {
  readonly joins: readonly SlotJoin[];
  readonly blockTableUpdates: readonly BlockTableUpdate[];
  /** Rows of one token first. */
  readonly rows: readonly ScheduledRow[];
  /** Of slots that have a row in the batch. Default: none. */
  readonly snapshots?: readonly StateSnapshot[];
  readonly decodeRows: number;
  readonly numTokens: number;
}

/** The tokens that a masked row may draw. */
export interface RowMask {
  /** Its index in the batch. */
  readonly row: number;
  /** Bit t % 32 of word t / 32: token t may be drawn. */
  readonly mask: Uint32Array;
  /** The mask is the same for as long as it is the same array and this the same number. Default: it never is. */
  readonly version?: number | undefined;
}

/** Log-probabilities of some consecutive positions: K top entries each, best first. */
export interface LogprobRows {
  readonly chosenIds: Int32Array;
  readonly chosenLogprobs: Float32Array;
  /** 1 = the most likely token. */
  readonly chosenRanks: Int32Array;
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
  /** K. */
  readonly topCount: number;
}

export interface StepResult {
  /** The drawn tokens of all rows, those of one after the other; a `NotDrawn` for one that could not be drawn. */
  readonly tokens: Int32Array;
  /** [rows + 1]: row i drew `tokens` from offsets[i] up to offsets[i + 1], none without `sample`. */
  readonly offsets: Int32Array;
  /** By row index, for rows that asked: of each token that the row drew. */
  readonly logprobs: ReadonlyMap<number, LogprobRows>;
  /** Position p's entry predicts token p + 1; a chunk that ends the prompt has one entry less than tokens. */
  readonly promptLogprobs: ReadonlyMap<number, LogprobRows>;
  /** float32 [count, vocabSize], for rows that asked. */
  readonly logits: ReadonlyMap<number, Float32Array>;
  /** float32 [count, hiddenSize], for rows that asked. */
  readonly states: ReadonlyMap<number, Float32Array>;
}

/**
 * Slots hold a state besides the tokens' keys and values, which is that of all tokens computed so far. A sequence that joins must begin
 * at its first token, whatever blocks hold, or at a snapshot of the state there.
 */
export interface SlotStates {
  /** Places for snapshots. */
  readonly numSnapshots: number;
  /** Tokens between the positions at which snapshots can be made: whole blocks. */
  readonly snapshotInterval: number;
}

/** The state of a slot, after the step, goes to a place for snapshots. */
export interface StateSnapshot {
  readonly slot: number;
  readonly snapshot: number;
}

/** Computes steps in the order of launch. */
export interface Runner {
  /** Blocks of the pool, each of which any group may have. */
  readonly numBlocks: number;
  readonly blockSize: number;
  readonly maxNumSeqs: number;
  /** Longest sequence that a slot holds, in tokens. */
  readonly maxModelLen: number;
  readonly vocabSize: number;
  /** The groups of the model's layers, at least one. */
  readonly groups: readonly KvGroup[];
  /** Undefined: slots hold nothing besides the tokens' keys and values. */
  readonly states?: SlotStates | undefined;
  /** Drafts that a row may have: 0 when the runner guesses no tokens. */
  readonly maxDrafts: number;
  /** Steps that may be launched before the oldest is collected, at least 1. */
  readonly maxInFlight: number;

  /**
   * Starts a step. The batch's tokens may depend on tokens of steps not collected yet: they are on the device. When it
   * throws, nothing was put in flight.
   */
  launch(batch: ScheduledBatch): void;
  /**
   * Lets the step that was launched last draw its tokens, if it has a masked row, and before anything else is launched: masks can
   * follow from tokens of the step before while all else of this one is computed. A masked row without a mask draws any token.
   * When it throws, the step is in flight no more.
   * @param masks read before this returns.
   */
  draw(masks: readonly RowMask[]): void;
  /** Waits for the oldest step not collected yet, which has been drawn. Throws what went wrong with that step as a whole. */
  collect(): StepResult;
  /** Frees the device. Safe to call twice. */
  dispose(): void;
}
