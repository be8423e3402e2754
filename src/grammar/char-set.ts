/** A set of Unicode scalar values: ascending, disjoint, non-adjacent ranges [first, last], flat. */
export type CharSet = readonly number[];

const LAST = 0x10ffff;
const SURROGATES = [0xd800, 0xdfff] as const;

/** Every character: all code points but the halves of surrogate pairs, which UTF-8 cannot spell. */
export const ANY_CHAR: CharSet = [0, SURROGATES[0] - 1, SURROGATES[1] + 1, LAST];

/** The union of ranges [first, last], given in any order. */
export function charSet(...ranges: readonly (readonly [first: number, last: number])[]): CharSet {
  const sorted = ranges.filter(([first, last]) => first <= last).sort((a, b) => a[0] - b[0]);
  const merged: number[] = [];
  for (const [first, last] of sorted) {
    const end = merged.length - 1;
    if (end > 0 && first <= merged[end]! + 1) merged[end] = Math.max(merged[end]!, last);
    else merged.push(first, last);
  }
  return merged;
}

/** The characters of a text. */
export function charsOf(text: string): CharSet {
  return charSet(...Array.from(text, (char) => [char.codePointAt(0)!, char.codePointAt(0)!] as const));
}

export function unite(...sets: readonly CharSet[]): CharSet {
  return charSet(...sets.flatMap(rangesOf));
}

/** What both have. */
export function intersect(a: CharSet, b: CharSet): CharSet {
  const common: [number, number][] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const first = Math.max(a[i]!, b[j]!);
    const last = Math.min(a[i + 1]!, b[j + 1]!);
    if (first <= last) common.push([first, last]);
    if (a[i + 1]! < b[j + 1]!) i += 2;
    else j += 2;
  }
  return charSet(...common);
}

/** All characters that `set` does not have. */
export function invert(set: CharSet): CharSet {
  const gaps: [number, number][] = [];
  let next = 0;
  for (const [first, last] of rangesOf(set)) {
    gaps.push([next, first - 1]);
    next = last + 1;
  }
  gaps.push([next, LAST]);
  return intersect(charSet(...gaps), ANY_CHAR);
}

export function rangesOf(set: CharSet): [first: number, last: number][] {
  return Array.from({ length: set.length / 2 }, (_, i) => [set[2 * i]!, set[2 * i + 1]!]);
}

export function hasChar(set: CharSet, code: number): boolean {
  for (let i = 0; i < set.length; i += 2) if (code <= set[i + 1]!) return code >= set[i]!;
  return false;
}
