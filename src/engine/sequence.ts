import type { ScheduledRow, SlotSampling } from "../runner/types.ts";
import type { BlockTable } from "./block-table.ts";
import { BlockChain } from "./prefix-cache.ts";
import type { TokenMatcher } from "./token-matcher.ts";

/** `waiting` holds no blocks and no slot; `finished` may hold them until its steps in flight are collected. */
export type SequenceStatus = "waiting" | "running" | "finished";

/** The constants of a sequence. */
export interface SequenceInit {
  /** Order of arrival among all sequences of the engine. */
  readonly ordinal: number;
  readonly promptTokenIds: Int32Array;
  /** Tokens to generate at most; 0: only compute the prompt. */
  readonly maxTokens: number;
  readonly sampling: SlotSampling;
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  readonly logits: boolean;
  /** Hidden states of the prompt are read. Default false. */
  readonly states?: boolean;
  readonly salt: string;
  /** The first sequence of the same request, which computes the prompt for all. */
  readonly leader: Sequence | undefined;
  /** The next token depends on what the host makes of the one before: no step is launched ahead of it. */
  readonly lockstep: boolean;
  /** Says which tokens may be drawn. */
  readonly matcher?: TokenMatcher | undefined;
}

/**
 * One completion's tokens and where they stand. Positions [0, numComputedTokens) are known to be in the KV cache. What
 * steps in flight come to, the device alone knows: a row with drafts draws one token, or one more for each draft that it
 * accepts. Until they are collected there are two bounds: `maxPendingTokens`, the most tokens that they draw, and
 * `numScheduledTokens`, the position up to which they compute at most. Both come down by as much when drafts turn out to
 * have been rejected, so that their difference is exact: drawn tokens are all computed but the last.
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
  readonly states: boolean;
  readonly leader: Sequence | undefined;
  readonly lockstep: boolean;
  readonly matcher: TokenMatcher | undefined;
  readonly chain: BlockChain;

  status: SequenceStatus = "waiting";
  /** Known tokens. */
  length: number;
  maxPendingTokens = 0;
  numScheduledTokens = 0;
  numComputedTokens = 0;
  /** Steps launched and not collected that compute a row of this sequence. */
  inFlight = 0;
  /** Its row in flight, the only one, draws nothing, as its mask had not come: the sequence is to be computed again when it has. */
  isHeld = false;
  slot = -1;
  /** The KV blocks, by group of layers; none while it waits. */
  readonly blockTables: BlockTable[] = [];
  /** Positions before it have a block in every group. */
  blockEnd = 0;
  /** Positions, ascending, at which the state of the slot is to be kept, of models that have one. */
  borders: readonly number[] = [];
  /** Snapshots on their way that nobody knows of yet, by position. */
  readonly snapshots: { readonly position: number; readonly place: number }[] = [];
  /** Tokens taken from the prefix cache when first admitted; −1 before. */
  numCachedTokens = -1;
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
    this.states = init.states ?? false;
    this.leader = init.leader;
    this.lockstep = init.lockstep;
    this.matcher = init.matcher;
    this.chain = new BlockChain(init.salt);
    this.length = this.promptLength;
    this.#tokens = new Int32Array(this.promptLength + Math.min(init.maxTokens, 64));
    this.#tokens.set(init.promptTokenIds);
  }

  /** Only the prompt is computed, to be read; no token is drawn. */
  get isRead(): boolean {
    return this.logits || this.states;
  }

  /** The known tokens are the first `length` entries. */
  get tokens(): Int32Array {
    return this.#tokens;
  }

  /** Which tokens may be drawn next is not known, and will not be soon. */
  get awaitsMask(): boolean {
    const { matcher } = this;
    if (this.isHeld) return true;
    return matcher?.isSlow === true && (matcher.isPending || this.maxPendingTokens > 0);
  }

  /** Tokens that could be computed now: 0 when only steps in flight can tell how to go on. */
  get numRemainingTokens(): number {
    if (this.lockstep && this.maxPendingTokens > 0) return 0;
    const bound = this.length + this.maxPendingTokens;
    if (this.maxLength > this.promptLength && bound >= this.maxLength) return 0;
    return bound - this.numScheduledTokens;
  }

  /** Tokens that may still be drawn after the pending ones and the next. */
  get maxDrafts(): number {
    const decodes = !this.lockstep && !this.matcher && this.numScheduledTokens >= this.promptLength;
    return decodes ? this.maxLength - this.length - this.maxPendingTokens - 1 : 0;
  }

  /** A step is about to compute this row. */
  schedule({ count, sample, drafts = 0 }: ScheduledRow): void {
    this.numScheduledTokens += count;
    if (sample) this.maxPendingTokens += drafts + 1;
  }

  /** The oldest step in flight has computed this row and drawn tokens[start, end). */
  collect({ count, sample, drafts = 0 }: ScheduledRow, tokens: Int32Array, start: number, end: number): void {
    const rejected = sample ? drafts + 1 - (end - start) : 0;
    if (sample) this.maxPendingTokens -= drafts + 1;
    this.numScheduledTokens -= rejected;
    this.numComputedTokens += count - rejected;
    for (let i = start; i < end; i++) this.#append(tokens[i]!);
  }

  #append(token: number): void {
    if (this.length === this.#tokens.length) {
      const grown = new Int32Array(Math.min(this.maxLength, 2 * this.length));
      grown.set(this.#tokens);
      this.#tokens = grown;
    }
    this.#tokens[this.length++] = token;
  }
}
