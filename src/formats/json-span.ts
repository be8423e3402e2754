const QUOTE = 0x22;
const COMMA = 0x2c;
const OPEN_LIST = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** JSON's white space. */
export function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;
}

/** Finds the end of a JSON value by its brackets and quotes. It begins with the first character that it is given. */
export class JsonSpan {
  #depth = 0;
  #kind: "unknown" | "scalar" | "string" | "container" = "unknown";
  #inString = false;
  #escaped = false;

  /** Takes text from `start` on; returns where the value ends, or -1 if all of it belongs to the value, which goes on. */
  read(text: string, start: number): number {
    for (let i = start; i < text.length; i++) {
      const code = text.charCodeAt(i);
      if (this.#inString) {
        if (this.#escaped) this.#escaped = false;
        else if (code === BACKSLASH) this.#escaped = true;
        else if (code === QUOTE) {
          this.#inString = false;
          if (this.#kind === "string") return i + 1;
        }
        continue;
      }
      if (this.#kind === "unknown") this.#kind = kindOf(code);
      if (code === QUOTE) this.#inString = true;
      else if (code === OPEN_OBJECT || code === OPEN_LIST) this.#depth++;
      else if (code === CLOSE_OBJECT || code === CLOSE_LIST) {
        if (this.#kind === "scalar") return i;
        if (--this.#depth === 0) return i + 1;
      } else if (this.#kind === "scalar" && (code === COMMA || isBlank(code))) return i;
    }
    return -1;
  }
}

function kindOf(code: number): "scalar" | "string" | "container" {
  if (code === QUOTE) return "string";
  return code === OPEN_OBJECT || code === OPEN_LIST ? "container" : "scalar";
}
