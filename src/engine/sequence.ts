import type { SlotSampling } from "../runner/types.ts";
import { BlockChain } from "./prefix-cache.ts";

/** `waiting` holds no blocks and no slot; `finished` may hold them until its steps in flight are collected. */
export type SequenceStatus = "waiting" | "running" | "finished";

/** What never changes about a sequence. */
export interface SequenceInit {
  /** Order of arrival among all sequences of the engine. */
  readonly ordinal: number;
  readonly promptTokenIds: readonly number[];
  /** Tokens to generate at most; 0: only compute the prompt. */
  readonly maxTokens: number;
  readonly sampling: SlotSampling;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  readonly logits: boolean;
  readonly salt: string;
  /** The first sequence of the same request, which computes the prompt for all. */
  readonly leader: Sequence | undefined;
}

/**
 * One completion's tokens and where they stand. Positions [0, numComputed) are known to be in the KV cache,
 * [numComputed, numScheduled) will be once the steps in flight are done. `numPending` tokens have been drawn, or will
 * be, by steps in flight: they are on the device and follow the `length` known ones.
 */
export class Sequence {
  readonly ordinal: number;
  readonly promptLength: number;
  /** Known and pending tokens never exceed this. */
  readonly maxLength: number;
  readonly sampling: SlotSampling;
  readonly logprobs: number | undefined;
  /** Undefined, too, once the prompt's log-probabilities have been collected. */
  promptLogprobs: number | undefined;
  readonly logits: boolean;
  readonly leader: Sequence | undefined;
  readonly chain: BlockChain;

  status: SequenceStatus = "waiting";
  length: number;
  numPending = 0;
  numScheduled = 0;
  numComputed = 0;
  /** Steps launched and not collected that compute a row of this sequence. */
  inFlight = 0;
  slot = -1;
  /** The KV blocks held, in order of position. */
  readonly table: number[] = [];
  /** Tokens taken from the prefix cache when first admitted; −1 before. */
  numCached = -1;
  /** Links of the `SequenceList` that the sequence is in. */
  previous: Sequence | undefined;
  next: Sequence | undefined;

  #tokens: Int32Array;

  constructor(init: SequenceInit) {
    this.ordinal = init.ordinal;
    this.promptLength = init.promptTokenIds.length;
    this.maxLength = this.promptLength + init.maxTokens;
    this.sampling = init.sampling;
    this.logprobs = init.logprobs;
    this.promptLogprobs = init.promptLogprobs;
    this.logits = init.logits;
    this.leader = init.leader;
    this.chain = new BlockChain(init.salt);
    this.length = this.promptLength;
    this.#tokens = new Int32Array(this.promptLength + Math.min(init.maxTokens, 64));
    this.#tokens.set(init.promptTokenIds);
  }

  /** The known tokens are the first `length` entries. */
  get tokens(): Int32Array {
    return this.#tokens;
  }

  /** Tokens that could be computed now: 0 when only steps in flight can tell how to go on. */
  get numRemaining(): number {
    const virtualLength = this.length + this.numPending;
    if (this.maxLength > this.promptLength && virtualLength >= this.maxLength) return 0;
    return virtualLength - this.numScheduled;
  }

  append(token: number): void {
    if (this.length === this.#tokens.length) {
      const grown = new Int32Array(Math.min(this.maxLength, 2 * this.length));
      grown.set(this.#tokens);
      this.#tokens = grown;
    }
    this.#tokens[this.length++] = token;
  }
}
