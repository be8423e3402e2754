import type { TokenTable } from "../tokenizer/token-table.ts";

/** A token of a text. */
export interface TokenPiece {
  readonly id: number;
  /** Whole characters; empty for the beginning of one. */
  readonly text: string;
}

/**
 * Finds the tokens of a text in it, as both come. The text is what the tokens come to, but it may lag behind them, for a
 * stop string that may come, and end before them.
 */
export class TokenPieces {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #waiting: TokenPiece[] = [];
  #text = "";
  #hasBegun = false;

  /** @param skipsSpecial whether the text leaves special tokens out. */
  constructor(
    private readonly tokens: TokenTable,
    private readonly skipsSpecial: boolean,
  ) {}

  /** The tokens whose text has come. */
  push(text: string, tokenIds: readonly number[]): readonly TokenPiece[] {
    this.#text += text;
    for (const id of tokenIds) {
      const isSkipped = this.skipsSpecial && this.tokens.isSpecial(id);
      const spelled = isSkipped ? "" : this.#decoder.decode(this.tokens.bytes(id), { stream: true });
      this.#waiting.push({ id, text: spelled });
    }
    const pieces: TokenPiece[] = [];
    let at = 0;
    for (const { id, text: spelled } of this.#waiting) {
      const length = this.#lengthAt(at, spelled);
      if (at + length > this.#text.length) break;
      pieces.push({ id, text: this.#text.slice(at, at + length) });
      at += length;
    }
    this.#waiting = this.#waiting.slice(pieces.length);
    this.#text = this.#text.slice(at);
    return pieces;
  }

  /** The text behind the last token: what a stop string has left of one, or U+FFFD for a part of a character. */
  get rest(): string {
    return this.#text;
  }

  /** The length of a token in the text, which lacks the space that some tokenizers put before its first word. */
  #lengthAt(at: number, spelled: string): number {
    if (this.#hasBegun || spelled === "" || this.#text.length === at) return spelled.length;
    this.#hasBegun = true;
    return this.#text.startsWith(" ", at) ? spelled.length : spelled.replace(/^ /, "").length;
  }
}
