import type { CallSink, Reader } from "./format.ts";
import { PythonString } from "./python-string.ts";

const NAME_START = /^[\p{L}_]$/u;
const NAME_PART = /^[\p{L}\p{N}_.-]$/u;
const NUMBER = /^([+-]?)(\d[\d_]*)?(\.[\d_]*)?([eE][+-]?\d+)?$/;
const CONSTANTS: Readonly<Record<string, string>> = {
  ...{ True: "true", False: "false", None: "null" },
  ...{ true: "true", false: "false", null: "null" },
};

type Place =
  /** Before the list, between its entries, and in a function's name. */
  | "list"
  | "entry"
  | "function"
  /** After a call. */
  | "comma"
  /** Before a parameter, in its name, and before its value. */
  | "parameter"
  | "name"
  | "equals"
  /** Before a value or the end of what it would be in; in a literal, a string; after a value. */
  | "value"
  | "literal"
  | "string"
  | "after";

/**
 * Calls as a list in Python: `[f(a=1, b=["x", None]), g()]`, with literals for arguments; they are passed on as JSON while
 * they come. A call begins when its first parameter has a value, or there is none. White space before the list is skipped.
 */
export class PythonCalls implements Reader {
  status: "reading" | "done" | "failed" = "reading";
  #place: Place = "list";
  /** The name or literal that is being read. */
  #word = "";
  #string = new PythonString('"');
  /** The function's name until its call has begun. */
  #function = "";
  #hasParameters = false;
  /** The lists and dictionaries that are open: "]", or "}" before and ":" after a key's colon. */
  readonly #open: string[] = [];
  /** Before the next value comes a comma. */
  #comma = false;
  /** A value must follow: there is nothing to be closed, or a colon was before. */
  #needsValue = false;

  constructor(private readonly sink: CallSink) {}

  read(text: string): number {
    let i = 0;
    for (const character of text) {
      if (this.status === "reading") this.#push(character);
      if (this.status === "failed") return i;
      i += character.length;
      if (this.status === "done") return i;
    }
    return i;
  }

  #push(character: string): void {
    const handler = this.#handlers[this.#place];
    // A name or literal ends with the character after it.
    if (this.#place === "name" || this.#place === "literal" || this.#place === "string") handler(character);
    else if (character.trim() !== "" || this.#place === "function") handler(character);
  }

  readonly #handlers: Readonly<Record<Place, (character: string) => void>> = {
    list: (character) => this.#go(character === "[" && "entry"),
    entry: (character) => {
      this.#word = character;
      this.#go(NAME_START.test(character) && "function");
    },
    function: (character) => {
      if (NAME_PART.test(character)) this.#word += character;
      else {
        this.#function = this.#word;
        this.#hasParameters = false;
        this.#go(character === "(" && "parameter");
      }
    },
    comma: (character) => {
      if (character === "]") this.status = "done";
      else this.#go(character === "," && "entry");
    },
    parameter: (character) => {
      this.#word = character;
      if (character === ")") this.#endCall();
      else this.#go(NAME_START.test(character) && "name");
    },
    name: (character) => {
      if (NAME_PART.test(character)) this.#word += character;
      else {
        this.#place = "equals";
        this.#push(character);
      }
    },
    equals: (character) => {
      if (character !== "=") this.status = "failed";
      else if (this.#begin()) {
        this.sink.arguments(`${this.#hasParameters ? ", " : "{"}${JSON.stringify(this.#word)}: `);
        this.#hasParameters = true;
        this.#comma = false;
        this.#needsValue = true;
        this.#place = "value";
      }
    },
    value: (character) => this.#beginValue(character),
    literal: (character) => {
      if (/[\w.+-]/.test(character)) this.#word += character;
      else {
        this.#endLiteral();
        if (this.status === "reading") this.#push(character);
      }
    },
    string: (character) => {
      const part = this.#string.push(character);
      if (part === "wrong") this.status = "failed";
      else if (part === "end" || part === "after") {
        this.sink.arguments('"');
        this.#place = "after";
        if (part === "after") this.#push(character);
      } else if (part.json !== "") this.sink.arguments(part.json);
    },
    after: (character) => this.#afterValue(character),
  };

  #go(place: Place | false): void {
    if (place === false) this.status = "failed";
    else this.#place = place;
  }

  /** Begins the call, unless it has begun. */
  #begin(): boolean {
    if (this.#function === "") return true;
    const isOpen = this.sink.open(this.#function);
    this.#function = "";
    if (!isOpen) this.status = "failed";
    return isOpen;
  }

  #endCall(): void {
    if (!this.#begin()) return;
    this.sink.arguments(this.#hasParameters ? "}" : "{}");
    this.#place = "comma";
  }

  #beginValue(character: string): void {
    const closer = this.#open.at(-1);
    if (!this.#needsValue && character === closer) {
      this.#close();
      return;
    }
    const isKey = closer === "}";
    const isQuote = character === '"' || character === "'";
    const isLiteral = /[\w.+-]/.test(character);
    if (!isQuote && !isLiteral && (isKey || (character !== "[" && character !== "{"))) {
      this.status = "failed";
      return;
    }
    if (this.#comma) this.sink.arguments(", ");
    this.#comma = false;
    if (isQuote) {
      this.#string = new PythonString(character);
      this.sink.arguments('"');
      this.#place = "string";
    } else if (isLiteral) {
      this.#word = character;
      this.#place = "literal";
    } else {
      this.sink.arguments(character);
      this.#open.push(character === "[" ? "]" : "}");
      this.#needsValue = false;
    }
  }

  #endLiteral(): void {
    const json = Object.hasOwn(CONSTANTS, this.#word) ? CONSTANTS[this.#word] : jsonNumber(this.#word);
    if (json === undefined) this.status = "failed";
    else this.sink.arguments(this.#open.at(-1) === "}" ? JSON.stringify(json) : json);
    this.#place = "after";
  }

  #afterValue(character: string): void {
    const closer = this.#open.at(-1);
    if (closer === "}") {
      // After a key.
      if (character !== ":") {
        this.status = "failed";
        return;
      }
      this.#open[this.#open.length - 1] = ":";
      this.sink.arguments(": ");
      this.#needsValue = true;
      this.#place = "value";
    } else if (closer === undefined) {
      if (character === ")") this.#endCall();
      else this.#go(character === "," && "parameter");
    } else if (character === ",") {
      if (closer === ":") this.#open[this.#open.length - 1] = "}";
      this.#comma = true;
      this.#needsValue = false;
      this.#place = "value";
    } else if (character === (closer === ":" ? "}" : "]")) this.#close();
    else this.status = "failed";
  }

  #close(): void {
    this.sink.arguments(this.#open.pop() === "]" ? "]" : "}");
    this.#comma = false;
    this.#place = "after";
  }
}

/** A decimal number of Python as JSON; undefined if it is none. */
function jsonNumber(word: string): string | undefined {
  const match = NUMBER.exec(word);
  if (!match) return undefined;
  const [, sign, whole = "", fraction = "", exponent = ""] = match;
  const digits = whole.replaceAll("_", "");
  const decimals = fraction.slice(1).replaceAll("_", "");
  if (digits + decimals === "" || /^0\d/.test(digits)) return undefined;
  const point = fraction === "" ? "" : `.${decimals || "0"}`;
  return `${sign === "-" ? "-" : ""}${digits || "0"}${point}${exponent}`;
}
