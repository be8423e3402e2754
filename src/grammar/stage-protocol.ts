import type { PackedTokens } from "../tokenizer/token-table.ts";

/**
 * Characters of the grammars that a stage keeps compiled, for the next request that has the same: each stands for up to 60 bytes of
 * masks, of a large vocabulary.
 */
export const MAX_COMPILED = 2 ** 20;

/**
 * A message to the stage's Worker, which handles them in their order. Each is followed by the bell. What comes with every token goes
 * through shared memory instead: a message costs either thread more than the mask of a short list of tokens.
 */
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
  /** Rung once messages are posted and matchers are told of tokens: a number that changes. The Worker sleeps on it. */
  bell: 2,
  /** Messages posted so far. */
  messages: 3,
  /** 1: the next answer is also to be posted. The Worker sets it back. */
  listens: 4,
} as const;

/** Words of that memory. */
export const STAGE_WORDS = 5;

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

const HEADER_WORDS = 8;
const Header = { numAnswers: 0, state: 1, numTokens: 2, token: 3, version: 4 } as const;

/**
 * A matcher's memory that the threads share: how many tokens there are, and the last one; how many answers there have been, the last
 * one's state, and its mask. There is no next token before the one before has been answered.
 */
export class MatcherMemory {
  readonly #header: Int32Array;
  /** Bit t % 32 of word t / 32: token t may come next. Stable until the next token is accepted. The Worker writes what is new of it. */
  readonly mask: Uint32Array;

  constructor(readonly buffer: SharedArrayBuffer) {
    this.#header = new Int32Array(buffer, 0, HEADER_WORDS);
    this.mask = new Uint32Array(buffer, 4 * HEADER_WORDS);
  }

  static allocate(vocabSize: number): MatcherMemory {
    return new MatcherMemory(new SharedArrayBuffer(4 * (HEADER_WORDS + Math.ceil(vocabSize / 32))));
  }

  get numAnswers(): number {
    return Atomics.load(this.#header, Header.numAnswers);
  }

  get state(): AnswerState {
    return Atomics.load(this.#header, Header.state) as AnswerState;
  }

  get numTokens(): number {
    return Atomics.load(this.#header, Header.numTokens);
  }

  /** The last of the tokens. */
  get token(): number {
    return Atomics.load(this.#header, Header.token);
  }

  /** The mask is the same for as long as this is. */
  get version(): number {
    return Atomics.load(this.#header, Header.version);
  }

  /** The stage's: there are so many tokens, of which this is the last. */
  tell(numTokens: number, token: number): void {
    Atomics.store(this.#header, Header.token, token);
    Atomics.store(this.#header, Header.numTokens, numTokens);
  }

  /** The Worker's, once the mask is in place. */
  answer(number: number, state: AnswerState, hasChanged: boolean): void {
    if (hasChanged) Atomics.add(this.#header, Header.version, 1);
    Atomics.store(this.#header, Header.state, state);
    Atomics.store(this.#header, Header.numAnswers, number);
  }
}
