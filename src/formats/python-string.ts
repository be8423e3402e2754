/** Escapes of one character. A backslash at the end of a line stands for nothing. */
const SIMPLE: Readonly<Record<string, string>> = {
  ...{ n: "\n", t: "\t", r: "\r", b: "\b", f: "\f", v: "\v", a: "\x07", "0": "\0" },
  ...{ "\\": "\\", "'": "'", '"': '"', "\n": "" },
};
/** Escapes by the number of hexadecimal digits that follow. */
const HEX: Readonly<Record<string, number>> = { x: 2, u: 4, U: 8 };

/** A Python string literal without prefix, character by character, as the inside of a JSON string. */
export class PythonString {
  #quotes = 1;
  /** Quotes at the end of what has come, which may or may not be those of the end. */
  #seen = 0;
  #isEmpty = true;
  #escape: "none" | "begun" | { readonly length: number; digits: string } = "none";

  /** @param quote the character that it begins with. */
  constructor(private readonly quote: string) {}

  /**
   * Takes the next character. "after": it is no part of the string, which has ended; "end": it is the last; "wrong": there
   * is no such string. Otherwise the JSON text that has become certain.
   */
  push(character: string): { readonly json: string } | "after" | "end" | "wrong" {
    if (this.#escape !== "none") return this.#escaped(character);
    if (this.#isEmpty) return this.#opening(character);
    if (character === this.quote) {
      this.#seen++;
      return this.#seen === this.#quotes ? "end" : NOTHING;
    }
    const quotes = this.quote.repeat(this.#seen);
    this.#seen = 0;
    if (character !== "\\") return { json: escaped(quotes + character) };
    this.#escape = "begun";
    return { json: escaped(quotes) };
  }

  /** The first characters: of two quotes, the second ends an empty string, unless a third one follows. */
  #opening(character: string): { readonly json: string } | "after" | "end" | "wrong" {
    if (character === this.quote) {
      this.#seen++;
      if (this.#seen === 1) return NOTHING;
      this.#quotes = 3;
    } else if (this.#seen === 1) return "after";
    this.#seen = 0;
    this.#isEmpty = false;
    return character === this.quote ? NOTHING : this.push(character);
  }

  #escaped(character: string): { readonly json: string } | "wrong" {
    if (this.#escape === "begun") {
      const simple = Object.hasOwn(SIMPLE, character) ? SIMPLE[character]! : undefined;
      const length = Object.hasOwn(HEX, character) ? HEX[character]! : undefined;
      this.#escape = length === undefined ? "none" : { length, digits: "" };
      if (length !== undefined) return NOTHING;
      // Python keeps the backslash of an escape that it does not know.
      return { json: escaped(simple ?? `\\${character}`) };
    }
    const hex = this.#escape as { readonly length: number; digits: string };
    if (!/^[\da-fA-F]$/.test(character)) return "wrong";
    hex.digits += character;
    if (hex.digits.length < hex.length) return NOTHING;
    this.#escape = "none";
    const code = Number.parseInt(hex.digits, 16);
    return code > 0x10ffff ? "wrong" : { json: escaped(String.fromCodePoint(code)) };
  }
}

const NOTHING = { json: "" } as const;

/** The inside of a JSON string. */
export function escaped(text: string): string {
  return JSON.stringify(text).slice(1, -1);
}
