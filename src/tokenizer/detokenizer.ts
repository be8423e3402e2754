import type { Tokenizer } from "./tokenizer.ts";

export interface DetokenizerOptions {
  /** Leave special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean;
  /**
   * The tokens before the first one pushed. Their text is not returned, but decides whether a SentencePiece model's
   * leading space belongs to the output, and completes a character that they leave unfinished. The last few suffice.
   */
  context?: readonly number[];
}

/**
 * Turns tokens into text as they arrive. The returned texts hold whole characters only, and concatenated they are
 * `Tokenizer.decode` of all tokens (less the context's text). Each token costs its own length.
 */
export class IncrementalDetokenizer {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecialTokens: boolean;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** Spaces that may still be dropped: none once the text has begun. */
  #leadingSpaces: number;

  constructor(tokenizer: Tokenizer, { skipSpecialTokens = true, context = [] }: DetokenizerOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = skipSpecialTokens;
    this.#leadingSpaces = tokenizer.leadingSpaces;
    for (const id of context) this.push(id);
  }

  /** The text that became certain with token `id`; empty inside a character that spans tokens. */
  push(id: number): string {
    if (this.#skipSpecialTokens && this.#tokenizer.isSpecial(id)) return "";
    let bytes = this.#tokenizer.tokenBytes(id);
    while (this.#leadingSpaces > 0 && bytes.length > 0) {
      if (bytes[0] !== 0x20) this.#leadingSpaces = 0;
      else {
        bytes = bytes.subarray(1);
        this.#leadingSpaces--;
      }
    }
    return this.#decoder.decode(bytes, { stream: true });
  }

  /** Ends the text: U+FFFD if the last character is incomplete, else nothing. */
  flush(): string {
    return this.#decoder.decode();
  }
}
