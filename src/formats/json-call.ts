import type { CallSink, Reader } from "./format.ts";
import { isBlank, JsonSpan } from "./json-span.ts";

const NAME = "name";
const ARGUMENTS: ReadonlySet<string> = new Set(["arguments", "parameters"]);
/** Further keys of a call, which mean nothing. */
const OTHERS: ReadonlySet<string> = new Set(["id", "type"]);

/** Arguments as a JSON object, passed on as they stand. White space before it is skipped. */
export class JsonArguments implements Reader {
  status: "reading" | "done" | "failed" = "reading";
  readonly #span = new JsonSpan();
  #hasBegun = false;

  constructor(private readonly sink: CallSink) {}

  read(text: string): number {
    let start = 0;
    if (!this.#hasBegun) {
      while (start < text.length && isBlank(text.charCodeAt(start))) start++;
      if (start === text.length) return start;
      if (text[start] !== "{") {
        this.status = "failed";
        return start;
      }
      this.#hasBegun = true;
    }
    const end = this.#span.read(text, start);
    this.sink.arguments(text.slice(start, end < 0 ? undefined : end));
    if (end >= 0) this.status = "done";
    return end < 0 ? text.length : end;
  }
}

type Place = "start" | "key" | "colon" | "value" | "comma";

/**
 * A call as a JSON object: `{"name": "f", "arguments": {…}}`, or `parameters`, in any order; without either there are no
 * arguments. They are passed on as they stand, from when the name is known. White space before the object is skipped.
 */
export class JsonCall implements Reader {
  status: "reading" | "done" | "failed" = "reading";
  #place: Place = "start";
  /** The string or value that is being read. */
  #span: JsonSpan | undefined;
  #spelling = "";
  #key = "";
  #isFirst = true;
  #name: string | undefined;
  #isOpen = false;
  /** Arguments that came before the name. */
  #early = "";
  /** The arguments have ended; those of a second key would make them no JSON. */
  #hasArguments = false;

  /** @param strict an object with another key than a call's is none. */
  constructor(
    private readonly sink: CallSink,
    private readonly strict: boolean,
  ) {}

  read(text: string): number {
    let i = 0;
    while (i < text.length && this.status === "reading") {
      if (this.#span) i = this.#readSpan(this.#span, text, i);
      else if (isBlank(text.charCodeAt(i))) i++;
      else if (this.#accept(text[i]!)) i++;
      else if (!this.#span) this.status = "failed";
    }
    return i;
  }

  /** Takes a character outside of keys and values; false if it was not taken, for it begins one or is wrong. */
  #accept(character: string): boolean {
    switch (this.#place) {
      case "start":
        this.#place = "key";
        return character === "{";
      case "key":
        if (character === "}" && this.#isFirst) return this.#end();
        if (character === '"') this.#begin();
        return false;
      case "colon":
        this.#place = "value";
        return character === ":";
      case "value":
        if (!/["{[\d\-tfn]/.test(character)) return false;
        this.#begin();
        return false;
      case "comma":
        if (character === "}") return this.#end();
        this.#place = "key";
        this.#isFirst = false;
        return character === ",";
    }
  }

  #begin(): void {
    this.#span = new JsonSpan();
    this.#spelling = "";
  }

  #readSpan(span: JsonSpan, text: string, start: number): number {
    const end = span.read(text, start);
    const part = text.slice(start, end < 0 ? undefined : end);
    if (this.#place === "value" && ARGUMENTS.has(this.#key)) this.#arguments(part);
    else if (this.#place === "key" || this.#key === NAME) this.#spelling += part;
    if (end < 0) return text.length;
    this.#span = undefined;
    if (this.#place === "key") this.#endKey();
    else this.#endValue();
    return end;
  }

  #endKey(): void {
    const key = parsed(this.#spelling);
    this.#place = "colon";
    this.#key = typeof key === "string" ? key : "";
    const isKnown = this.#key === NAME || ARGUMENTS.has(this.#key) || OTHERS.has(this.#key);
    if (this.strict && !isKnown && !this.#isOpen) this.status = "failed";
  }

  #endValue(): void {
    this.#place = "comma";
    this.#hasArguments ||= ARGUMENTS.has(this.#key);
    if (this.#key !== NAME || this.#name !== undefined) return;
    const name = parsed(this.#spelling);
    if (typeof name !== "string") this.status = "failed";
    else this.#name = name;
    if (this.#early !== "") this.#open();
  }

  #arguments(part: string): void {
    if (this.#hasArguments) return;
    if (this.#name === undefined) this.#early += part;
    else if (this.#open()) this.sink.arguments(part);
  }

  /** Begins the call, if it has not begun. */
  #open(): boolean {
    if (this.#isOpen) return true;
    if (this.#name === undefined || !this.sink.open(this.#name)) {
      this.status = "failed";
      return false;
    }
    this.#isOpen = true;
    if (this.#early !== "") this.sink.arguments(this.#early);
    return true;
  }

  #end(): boolean {
    if (this.#open()) this.status = "done";
    return this.status === "done";
  }
}

function parsed(json: string): unknown {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}
