/** One of the ranks that a model's weights are divided among; each rank runs on a device of its own. */
export interface Shard {
  /** Of this rank, [0, size). */
  readonly rank: number;
  readonly size: number;
}

/** The most ranks that a model is divided among. */
export const MAX_RANKS = 8;

/** The only rank of a model that is not divided. */
export const WHOLE: Shard = { rank: 0, size: 1 };

/** Part of a dimension: `[start, end)`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/**
 * The part of `count` units that a rank holds. Ranks hold neighbouring parts that differ by a unit at most, in the order
 * of the ranks; where there are fewer units than ranks, each holds one, which neighbours then have in common.
 */
export function shareOf(count: number, { rank, size }: Shard): Span {
  const start = Math.floor((count * rank) / size);
  return { start, end: Math.max(start + 1, Math.floor((count * (rank + 1)) / size)) };
}

/** Units of a span. */
export function lengthOf({ start, end }: Span): number {
  return end - start;
}
