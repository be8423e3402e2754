/** The grammar of one completion's text: says which tokens may come next. It is answered from elsewhere. */
export interface TokenMatcher {
  /** What may come next is not known yet. */
  readonly isPending: boolean;
  /** Its answers take long, the first one above all: no step is to wait for one. */
  readonly isSlow: boolean;
  /** The text is complete, and nothing may come after it. */
  readonly isComplete: boolean;
  /** Why it will never be known what may come next. */
  readonly error: Error | undefined;
  /** Bit t % 32 of word t / 32: token t may come next. Meaningless while pending; stable until the next token is accepted. */
  readonly mask: Uint32Array;
  /** The mask is the same for as long as it is the same array and this the same number. */
  readonly maskVersion: number;
  /** The token that has been drawn. */
  accept(token: number): void;
  /** Safe to call twice. */
  dispose(): void;
}

/** The maker of matchers. */
export interface MatcherSource {
  /**
   * @param init `grammar`: EBNF with a rule `root`; `markers`: tokens that it asks for as such; `stopTokenIds`: tokens that may end a complete text; `allowedTokenIds`: the
   * only tokens that may come at all
   */
  open(init: {
    readonly grammar: string;
    readonly markers?: readonly number[] | undefined;
    readonly stopTokenIds: readonly number[];
    readonly allowedTokenIds: readonly number[] | undefined;
  }): TokenMatcher;
  /** Asks about the tokens that matchers have accepted. */
  flush(): void;
  /**
   * Waits until no matcher is pending that is not slow, or for so long that those that still are have become slow.
   * @param isIdle the device computes nothing meanwhile
   */
  settle(isIdle: boolean): void;
  /** Resolves when some matcher may not be pending any more. */
  changed(): Promise<void>;
}
