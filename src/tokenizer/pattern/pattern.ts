import { UnsupportedModelError } from "../../base/errors.ts";
import { KNOWN_PATTERNS } from "./known-patterns.ts";
import { nativeExpression } from "./native.ts";
import { LinearSearch } from "./search.ts";
import { parsePattern } from "./syntax.ts";

/** Start and end of each match in a text, in order, one after the other; in UTF-16 units. */
export type Finder = (text: string) => readonly number[];

/**
 * A pattern of tokenizer.json, `{ "String": … }` or `{ "Regex": … }`. Expressions that are known to take linear time
 * run in JavaScript's engine, all others in one that needs no more for any.
 * @throws UnsupportedModelError naming `file` for an expression that can be run in neither
 */
export function compilePattern(pattern: unknown, file: string): Finder {
  const { String: text, Regex: source } = (pattern ?? {}) as { String?: unknown; Regex?: unknown };
  if (typeof text === "string") return (within) => occurrences(within, text);
  if (typeof source !== "string")
    throw new UnsupportedModelError(file, "a pattern is neither a text nor an expression");
  try {
    const parsed = parsePattern(source);
    if (KNOWN_PATTERNS.has(source)) return nativeFinder(nativeExpression(parsed));
    const search = new LinearSearch(parsed);
    return (within) => search.matches(within);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new UnsupportedModelError(file, `a pre-tokenizer's pattern cannot be run: ${reason}`, { cause });
  }
}

/** @param expression with the flags `gv` */
export function nativeFinder(expression: RegExp): Finder {
  return (text) => {
    const found: number[] = [];
    for (const match of text.matchAll(expression)) found.push(match.index, match.index + match[0].length);
    return found;
  };
}

/** As a `Finder`. */
export function occurrences(text: string, wanted: string): number[] {
  const found: number[] = [];
  if (wanted === "") return found;
  for (let at = text.indexOf(wanted); at >= 0; at = text.indexOf(wanted, at + wanted.length)) {
    found.push(at, at + wanted.length);
  }
  return found;
}
