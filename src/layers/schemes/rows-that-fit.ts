import { lengthOf, type Span } from "../../base/shard.ts";
import { BLOCK } from "./stored-float8.ts";

/**
 * The greatest power of two up to 128 such that each of the spans of rows that are stacked begins at a multiple of it, in its own
 * matrix and among the stacked rows.
 */
export function rowsThatFit(spans: readonly Span[]): number {
  const starts: number[] = [];
  let stacked = 0;
  for (const span of spans) {
    starts.push(span.start, stacked);
    stacked += lengthOf(span);
  }
  let rows = BLOCK;
  while (starts.some((start) => start % rows !== 0)) rows /= 2;
  return rows;
}
