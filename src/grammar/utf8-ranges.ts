import { type CharSet, rangesOf } from "./char-set.ts";

/** Ranges of bytes, [first, last] each, one after the other. */
export type ByteRanges = readonly (readonly [first: number, last: number])[];

/** Greatest code point that UTF-8 spells with one, two, three and four bytes. */
const LENGTH_ENDS = [0x7f, 0x7ff, 0xffff, 0x10ffff];

/** The UTF-8 of every character of a set, as sequences of byte ranges that exclude each other (Thompson's utf8-ranges). */
export function utf8Ranges(set: CharSet): ByteRanges[] {
  return rangesOf(set).flatMap(([first, last]) => {
    const sequences: ByteRanges[] = [];
    let from = first;
    for (const end of LENGTH_ENDS) {
      if (from > last || from > end) continue;
      split(from, Math.min(last, end), sequences);
      from = end + 1;
    }
    return sequences;
  });
}

/** Of characters that have the same number of bytes. */
function split(first: number, last: number, sequences: ByteRanges[]): void {
  const length = Buffer.byteLength(String.fromCodePoint(first));
  // The last i bytes of each half must run over all of their values, or be the same.
  for (let i = 1; i < length; i++) {
    const mask = (1 << (6 * i)) - 1;
    if ((first & ~mask) === (last & ~mask)) continue;
    if ((first & mask) !== 0) {
      split(first, first | mask, sequences);
      split((first | mask) + 1, last, sequences);
      return;
    }
    if ((last & mask) !== mask) {
      split(first, (last & ~mask) - 1, sequences);
      split(last & ~mask, last, sequences);
      return;
    }
  }
  const [low, high] = [Buffer.from(String.fromCodePoint(first)), Buffer.from(String.fromCodePoint(last))];
  sequences.push(Array.from(low, (byte, i) => [byte, high[i]!] as const));
}
