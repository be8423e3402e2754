import { ANY_CHAR, type CharSet, charSet } from "./char-set.ts";

/** A regular language of texts as an expression. */
export type Regex =
  | { readonly kind: "chars"; readonly set: CharSet }
  | { readonly kind: "sequence"; readonly parts: readonly Regex[] }
  | { readonly kind: "choice"; readonly options: readonly Regex[] }
  /** `max` undefined: without end. */
  | { readonly kind: "repeat"; readonly part: Regex; readonly min: number; readonly max: number | undefined };

export function chars(set: CharSet): Regex {
  return { kind: "chars", set };
}

export function sequence(...parts: readonly Regex[]): Regex {
  return parts.length === 1 ? parts[0]! : { kind: "sequence", parts };
}

/** Nothing matches a choice of no options. */
export function choice(...options: readonly Regex[]): Regex {
  return options.length === 1 ? options[0]! : { kind: "choice", options };
}

export function repeat(part: Regex, min: number, max?: number): Regex {
  return { kind: "repeat", part, min, max };
}

export function literal(text: string): Regex {
  return sequence(
    ...Array.from(text, (char) => chars(charSet([char.codePointAt(0)!, char.codePointAt(0)!]))),
  );
}

/** The empty text. */
export const EMPTY: Regex = sequence();
/** Any text, line breaks included. */
export const ANY_TEXT: Regex = repeat(chars(ANY_CHAR), 0);
