import type { TokenTable } from "../../tokenizer/token-table.ts";

/**
 * Offsets of tokens in the text that they come to, in Unicode code points, as Python counts. A token that is a part of a
 * character begins where the character does, one that the text leaves out where the next one does.
 */
export class TextOffsets {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #offset: number;

  /**
   * @param start of the first token.
   * @param skipsSpecial whether the text leaves special tokens out.
   */
  constructor(
    private readonly tokens: TokenTable,
    start: number,
    private readonly skipsSpecial: boolean,
  ) {
    this.#offset = start;
  }

  /** The offset of a token, which goes behind the ones before. */
  next(id: number): number {
    const offset = this.#offset;
    if (!(this.skipsSpecial && this.tokens.isSpecial(id)))
      this.#offset += codePoints(this.#decoder.decode(this.tokens.bytes(id), { stream: true }));
    return offset;
  }
}

/**
 * Offsets of the tokens of a given text, likewise. The text may lack tokens that the tokenizer added, and the blanks
 * that it put in front; where it was normalised, tokens are as long as their own text.
 */
export class GivenTextOffsets {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** In UTF-16 units. */
  #at = 0;
  #offset = 0;

  constructor(
    private readonly tokens: TokenTable,
    private readonly text: string,
  ) {}

  /** The offset of a token, which goes behind the ones before. */
  next(id: number): number {
    const offset = this.#offset;
    const part = this.#decoder.decode(this.tokens.bytes(id), { stream: true });
    const spelled = this.#at === 0 && !this.text.startsWith(part) ? part.trimStart() : part;
    const isThere = this.text.startsWith(spelled, this.#at);
    if (!isThere && this.tokens.isSpecial(id)) return offset;
    const end = Math.min(this.#at + spelled.length, this.text.length);
    this.#offset += codePoints(this.text.slice(this.#at, end));
    this.#at = end;
    return offset;
  }
}

/** Code points of a well-formed text. */
export function codePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i < text.length; i++) if (isLowSurrogate(text, i)) count--;
  return count;
}

function isLowSurrogate(text: string, at: number): boolean {
  return (text.charCodeAt(at) & 0xfc00) === 0xdc00;
}
