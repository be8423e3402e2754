import type { TokenMatcher } from "./token-matcher.ts";

/** Tokens that a completion may think for. */
export interface ThinkingLimit {
  readonly budget: number;
  /** The tokens that begin thoughts, one after the other, and the one that ends them. */
  readonly open: readonly number[];
  readonly close: number;
  /** The completion begins with thoughts. */
  readonly isInside: boolean;
}

/** Ends thoughts when they have had their number of tokens; otherwise another matcher decides, or nobody. */
export class ThinkingMatcher implements TokenMatcher {
  readonly #close: Uint32Array;
  #isInside: boolean;
  /** Tokens of thoughts so far. */
  #count = 0;
  /** The last tokens outside of thoughts, which may begin some. */
  #last: number[] = [];

  /** @param free the mask where nobody else decides. */
  constructor(
    private readonly limit: ThinkingLimit,
    private readonly other: TokenMatcher | undefined,
    private readonly free: Uint32Array,
  ) {
    this.#isInside = limit.isInside;
    this.#close = new Uint32Array(free.length);
    this.#close[limit.close >>> 5] = 1 << (limit.close & 31);
  }

  get isPending(): boolean {
    return this.other?.isPending ?? false;
  }

  get isSlow(): boolean {
    return this.other?.isSlow ?? false;
  }

  get isComplete(): boolean {
    return this.other?.isComplete ?? false;
  }

  get error(): Error | undefined {
    return this.other?.error;
  }

  get mask(): Uint32Array {
    const mask = this.other?.mask ?? this.free;
    const { close } = this.limit;
    const canClose = (mask[close >>> 5]! >>> (close & 31)) & 1;
    return this.#isInside && this.#count >= this.limit.budget && canClose ? this.#close : mask;
  }

  get maskVersion(): number {
    return this.mask === this.other?.mask ? this.other.maskVersion : 0;
  }

  accept(token: number): void {
    this.other?.accept(token);
    const { open, close } = this.limit;
    if (this.#isInside) {
      if (token === close) this.#isInside = false;
      else this.#count++;
    } else {
      this.#last = [...this.#last, token].slice(-open.length);
      this.#isInside = open.every((id, i) => this.#last[i] === id);
    }
  }

  dispose(): void {
    this.other?.dispose();
  }
}
