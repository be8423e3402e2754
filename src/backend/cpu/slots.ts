import { invariant } from "../../base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../base/sampling-params.ts";
import { COUNT_IN_PROMPT, LOGIT_EDIT_WORDS, SLOT_WORDS, SlotFlag, SlotWord } from "../backend.ts";

/** The host's view of `SlotTensors`, and their extents. */
export interface HostSlots {
  readonly tokens: Int32Array;
  readonly lengths: Int32Array;
  readonly numComputedTokens: Int32Array;
  readonly params: Uint32Array;
  /** The memory of `params`, for those that are floats. */
  readonly floatParams: Float32Array;
  readonly edits: Uint32Array;
  readonly badWords: Uint32Array;
  readonly allowed: Uint32Array;
  readonly counts: Uint32Array;
  /** S, L and V. */
  readonly slots: number;
  readonly capacity: number;
  readonly vocab: number;
}

/** One slot's part of every slot tensor. */
export class Slot {
  constructor(
    private readonly all: HostSlots,
    private readonly index: number,
  ) {
    if (!(0 <= index && index < all.slots)) invariant(false, `slot ${index} of ${all.slots}`);
  }

  get tokens(): Int32Array {
    const { tokens, capacity } = this.all;
    return tokens.subarray(this.index * capacity, (this.index + 1) * capacity);
  }

  get counts(): Uint32Array {
    const { counts, vocab } = this.all;
    return counts.subarray(this.index * vocab, (this.index + 1) * vocab);
  }

  /** A parameter stored as a float's bits. */
  float(name: keyof typeof SlotWord): number {
    return this.all.floatParams[this.index * SLOT_WORDS + SlotWord[name]]!;
  }

  /** A parameter stored as an unsigned integer. */
  word(name: keyof typeof SlotWord): number {
    return this.all.params[this.index * SLOT_WORDS + SlotWord[name]]!;
  }

  has(flag: number): boolean {
    return (this.word("flags") & flag) !== 0;
  }

  get edits(): Uint32Array {
    const stride = MAX_LOGIT_EDITS * LOGIT_EDIT_WORDS;
    const start = this.index * stride;
    return this.all.edits.subarray(start, start + this.word("editCount") * LOGIT_EDIT_WORDS);
  }

  /** Adds a token to the slot's sequence; a vacant slot has none. */
  append(token: number): void {
    const { lengths, tokens, capacity } = this.all;
    const length = lengths[this.index]!;
    if (length === 0) return;
    if (length >= capacity) invariant(false, `slot ${this.index} is full with ${length} tokens`);
    tokens[this.index * capacity + length] = token;
    lengths[this.index] = length + 1;
    if (this.has(SlotFlag.penalties)) this.counts[token]!++;
  }

  /** A sequence of which the first `length` tokens are in place takes the slot. */
  join(promptLength: number, length: number, numComputedTokens: number): void {
    invariant(
      promptLength <= length && numComputedTokens < length && length < this.tokens.length,
      `slot ${this.index}: ${length} tokens, ${promptLength} of the prompt, ${numComputedTokens} computed`,
    );
    this.all.lengths[this.index] = length;
    this.all.numComputedTokens[this.index] = numComputedTokens;
    if (!this.has(SlotFlag.penalties)) return;
    const { counts, tokens } = this;
    counts.fill(0);
    for (const [i, token] of tokens.subarray(0, length).entries()) {
      if (i < promptLength) counts[token]! |= COUNT_IN_PROMPT;
      else counts[token]!++;
    }
  }

  get badWords(): Uint32Array {
    return this.all.badWords.subarray(
      this.index * MAX_BAD_WORD_TOKENS,
      (this.index + 1) * MAX_BAD_WORD_TOKENS,
    );
  }

  get allowed(): Uint32Array {
    const stride = Math.ceil(this.all.vocab / 32);
    return this.all.allowed.subarray(this.index * stride, (this.index + 1) * stride);
  }
}
