import type { CallSink, Reader } from "./format.ts";

/** The token on both sides of a string. */
export const QUOTE = '<|"|>';
const BEGINNING = "call:";
const LITERAL = /^(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)$/;

type Place =
  /** The function's name, up to the brace. */
  | "name"
  /** A key, or the end of what it would be in. */
  | "key"
  /** Before a value, or the end of a list; in a string, as Gemma writes it and as JSON does; in a number or word; after a value. */
  | "value"
  | "string"
  | "json"
  | "literal"
  | "after";

/**
 * A call as Gemma 4 writes it, `call:f{a:<|"|>x<|"|>,b:[1,{c:null}]}`: JSON with keys as they are and a token in place of quotes, in which
 * strings have no escapes. It is passed on as JSON while it comes; a word that is nothing else is a string. Names and strings of JSON are
 * taken, too.
 */
export class Gemma4Call implements Reader {
  status: "reading" | "done" | "failed" = "reading";
  #place: Place = "name";
  /** The name, key or literal that is being read; of a string, what may be the beginning of its end. */
  #word = "";
  /** What ends the objects and lists that are open. */
  readonly #open: string[] = [];
  /** Nothing is in the innermost of them yet. */
  #isEmpty = true;

  constructor(private readonly sink: CallSink) {}

  read(text: string): number {
    let i = 0;
    for (const character of text) {
      this.#push(character);
      if (this.status === "failed") return i;
      i += character.length;
      if (this.status === "done") return i;
    }
    return i;
  }

  #push(character: string): void {
    if (this.#place === "name") this.#name(character);
    else if (this.#place === "key") this.#key(character);
    else if (this.#place === "value") this.#value(character);
    else if (this.#place === "string") this.#string(character);
    else if (this.#place === "json") this.#json(character);
    else if (this.#place === "literal") this.#literal(character);
    else this.#after(character);
  }

  #name(character: string): void {
    if (character === "{") {
      const isCall = this.#word.startsWith(BEGINNING) && this.sink.open(this.#word.slice(BEGINNING.length));
      if (isCall) this.#begin("}");
      else this.status = "failed";
      return;
    }
    if (this.#word === "" && character.trim() === "") return;
    this.#word += character;
    const isBeginning = this.#word.length <= BEGINNING.length;
    if (isBeginning && !BEGINNING.startsWith(this.#word)) this.status = "failed";
  }

  #key(character: string): void {
    if (this.#word === "" && character.trim() === "") return;
    if (this.#word === "" && character === "}") {
      this.#end(character);
      return;
    }
    const quote = [QUOTE, '"'].find((each) => this.#word.startsWith(each));
    const isWhole = quote === undefined || isQuoted(this.#word, quote);
    if (!isWhole || character !== ":") {
      if (quote === undefined || !isWhole || character.trim() !== "") this.#word += character;
      return;
    }
    const key = quote === undefined ? this.#word.trim() : this.#word.slice(quote.length, -quote.length);
    const json = quote === '"' ? this.#word : JSON.stringify(key);
    this.sink.arguments(`${this.#isEmpty ? "" : ", "}${json}: `);
    this.#isEmpty = true;
    this.#become("value");
  }

  #value(character: string): void {
    if (this.#word === "" && !QUOTE.startsWith(character)) {
      this.#unquoted(character);
      return;
    }
    if (this.#word === "") this.#separate();
    this.#word += character;
    if (this.#word === QUOTE) {
      this.#become("string");
      this.sink.arguments('"');
    } else if (!QUOTE.startsWith(this.#word)) this.status = "failed";
  }

  /** What a value that is no string begins with, or white space, or the end of a list. */
  #unquoted(character: string): void {
    if (character.trim() === "") return;
    if (character === "]" && this.#open.at(-1) === "]") {
      this.#end(character);
      return;
    }
    this.#separate();
    if (character === "{" || character === "[") this.#begin(character === "{" ? "}" : "]");
    else if (character === '"') {
      this.#become("json");
      this.sink.arguments(character);
    } else {
      this.#become("literal");
      this.#literal(character);
    }
  }

  /** In a list, what comes before a value is the comma. */
  #separate(): void {
    if (this.#open.at(-1) === "]" && !this.#isEmpty) this.sink.arguments(", ");
  }

  #string(character: string): void {
    this.#word += character;
    if (this.#word === QUOTE) {
      this.sink.arguments('"');
      this.#become("after");
      return;
    }
    let said = 0;
    while (!QUOTE.startsWith(this.#word.slice(said))) said++;
    if (said > 0) this.sink.arguments(JSON.stringify(this.#word.slice(0, said)).slice(1, -1));
    this.#word = this.#word.slice(said);
  }

  /** The word is a backslash, or nothing. */
  #json(character: string): void {
    this.sink.arguments(character);
    if (character === '"' && this.#word === "") this.#become("after");
    else this.#word = character === "\\" && this.#word === "" ? character : "";
  }

  #literal(character: string): void {
    if (character !== "," && character !== this.#open.at(-1)) {
      this.#word += character;
      return;
    }
    const word = this.#word.trim();
    if (word === "") {
      this.status = "failed";
      return;
    }
    this.sink.arguments(LITERAL.test(word) ? word : JSON.stringify(word));
    this.#become("after");
    this.#after(character);
  }

  #after(character: string): void {
    this.#isEmpty = false;
    if (character === ",") this.#become(this.#open.at(-1) === "}" ? "key" : "value");
    else if (character === this.#open.at(-1)) this.#end(character);
    else if (character.trim() !== "") this.status = "failed";
  }

  #become(place: Place): void {
    this.#place = place;
    this.#word = "";
  }

  #begin(end: string): void {
    this.sink.arguments(end === "}" ? "{" : "[");
    this.#open.push(end);
    this.#isEmpty = true;
    this.#become(end === "}" ? "key" : "value");
  }

  #end(character: string): void {
    this.sink.arguments(character);
    this.#open.pop();
    this.#become("after");
    this.#isEmpty = false;
    if (this.#open.length === 0) this.status = "done";
  }
}

/** Whether a text that begins with a quote ends with another; one of JSON may be escaped. */
function isQuoted(text: string, quote: string): boolean {
  if (text.length < 2 * quote.length || !text.endsWith(quote)) return false;
  let escapes = 0;
  while (quote === '"' && text[text.length - 2 - escapes] === "\\") escapes++;
  return escapes % 2 === 0;
}
