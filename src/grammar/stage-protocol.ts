import type { PackedTokens } from "../tokenizer/token-table.ts";

/** Compiled grammars that a stage keeps for the next request that has the same. */
export const MAX_COMPILED = 32;

/** A message to the stage's Worker, which handles them in their order. */
export type StageMessage =
  /** The first. */
  | {
      readonly type: "vocabulary";
      readonly tokens: PackedTokens;
      /** Width of the logits. */
      readonly vocabSize: number;
      /** int32, laid out by `StageWord`. */
      readonly shared: SharedArrayBuffer;
    }
  | ({ readonly type: "open" } & MatcherMessage)
  /** Pairs of a matcher's id and a token that has been drawn for it. */
  | { readonly type: "accept"; readonly pairs: Int32Array }
  | { readonly type: "close"; readonly id: number };

/** A matcher to be made, or made again. */
export interface MatcherMessage {
  /** From 1. */
  readonly id: number;
  /** EBNF with a rule `root`. */
  readonly grammar: string;
  /** Tokens that the grammar asks for as such. */
  readonly markers: readonly number[];
  /** Tokens that may end a complete text, and nothing else. */
  readonly stopTokenIds: readonly number[];
  readonly allowedTokenIds: readonly number[] | undefined;
  /** Tokens drawn so far. */
  readonly tokens: readonly number[];
  /** Laid out by `MatcherMemory`. */
  readonly memory: SharedArrayBuffer;
}

/** Words that the stage shares with its Worker. */
export const StageWord = {
  /** The matcher that is being worked on; 0 when none is. */
  current: 0,
  /** Answers so far, modulo 2³²; whoever waits for one is notified. */
  answers: 1,
} as const;

export type StageReply =
  /** Some matchers have been answered: look into their memory. */
  | { readonly type: "answered" }
  /** xgrammar has aborted, on this matcher's account. The Worker does nothing any more. */
  | { readonly type: "aborted"; readonly id: number };

/** States of a matcher's answer. */
export const AnswerState = {
  /** The mask says what may come next. */
  mask: 0,
  /** The text is complete, and nothing may come after it. */
  complete: 1,
  /** A token was drawn that the grammar does not allow. */
  refused: 2,
  /** Filling the mask takes too long. */
  slow: 3,
} as const;
export type AnswerState = (typeof AnswerState)[keyof typeof AnswerState];

const HEADER_WORDS = 2;

/** A matcher's answers, shared between the threads: how many there have been, the last one's state, and its mask. */
export class MatcherMemory {
  readonly #header: Int32Array;
  /** Bit t % 32 of word t / 32: token t may come next. Stable until the next token is accepted. */
  readonly mask: Uint32Array;

  constructor(readonly buffer: SharedArrayBuffer) {
    this.#header = new Int32Array(buffer, 0, HEADER_WORDS);
    this.mask = new Uint32Array(buffer, 4 * HEADER_WORDS);
  }

  static allocate(vocabSize: number): MatcherMemory {
    return new MatcherMemory(new SharedArrayBuffer(4 * (HEADER_WORDS + Math.ceil(vocabSize / 32))));
  }

  get numAnswers(): number {
    return Atomics.load(this.#header, 0);
  }

  get state(): AnswerState {
    return Atomics.load(this.#header, 1) as AnswerState;
  }

  /** The Worker's, once the mask is in place. */
  answer(number: number, state: AnswerState): void {
    Atomics.store(this.#header, 1, state);
    Atomics.store(this.#header, 0, number);
  }
}
