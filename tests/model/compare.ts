/** A token other than the reference's choice, and how far its logit lies below the chosen one's. */
export type Rival = readonly [id: number, gap: number];

/** A greedy continuation by the reference; entry i of each list belongs to its i-th token. */
export interface GreedyReference {
  readonly tokens: readonly number[];
  /** Log-probability of each chosen token. */
  readonly logprobs: readonly number[];
  /** The next three likeliest tokens, nearest first: `rivals[i][0][1]` is the gap between the best two logits. */
  readonly rivals: readonly (readonly Rival[])[];
}

/** The likeliest tokens at one position, likeliest first. */
export interface TopLogprobs {
  readonly ids: readonly number[];
  readonly logprobs: readonly number[];
}

/** ‖actual − expected‖ / ‖expected‖. NaN when either holds one or `expected` is all zero. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  requireSameLength(actual, expected);
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2;
    norm += expected[i]! ** 2;
  }
  return norm === 0 ? Number.NaN : Math.sqrt(difference / norm);
}

/** max |actual − expected| in standard deviations of `expected`. NaN when either holds one or `expected` is constant. */
export function maxErrorInStd(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  requireSameLength(actual, expected);
  let sum = 0;
  let error = 0;
  for (let i = 0; i < expected.length; i++) {
    sum += expected[i]!;
    error = Math.max(error, Math.abs(actual[i]! - expected[i]!));
  }
  const mean = sum / expected.length;
  let squares = 0;
  for (let i = 0; i < expected.length; i++) squares += (expected[i]! - mean) ** 2;
  return squares === 0 ? Number.NaN : error / Math.sqrt(squares / expected.length);
}

/** The cosine of the angle between two vectors. NaN when either holds one or is all zero. */
export function cosine(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  requireSameLength(actual, expected);
  let dot = 0;
  let actualSquares = 0;
  let expectedSquares = 0;
  for (let i = 0; i < expected.length; i++) {
    dot += actual[i]! * expected[i]!;
    actualSquares += actual[i]! ** 2;
    expectedSquares += expected[i]! ** 2;
  }
  return dot / Math.sqrt(actualSquares * expectedSquares);
}

/**
 * Compares a greedy continuation with the reference's and returns how many leading tokens agree. The first token
 * that differs must be a rival at most `gap` (in logits) below the reference's choice; what follows it has another
 * prefix and is not compared.
 *
 * @throws Error when a token differs by more than `gap`, or the two are not equally long.
 */
export function compareGreedy(actual: ArrayLike<number>, reference: GreedyReference, gap: number): number {
  requireSameLength(actual, reference.tokens);
  for (const [step, expected] of reference.tokens.entries()) {
    const token = actual[step]!;
    if (token === expected) continue;
    const rivals = reference.rivals[step]!;
    if (rivals.some(([id, distance]) => id === token && distance <= gap)) return step;
    const nearest = rivals.map(([id, distance]) => `${id} at ${distance}`).join(", ");
    throw new Error(`step ${step}: token ${token}, expected ${expected} (rivals ${nearest}; allowed ${gap})`);
  }
  return actual.length;
}

/**
 * Compares log-probabilities of the same tokens and returns the largest difference.
 *
 * @throws Error when one differs by more than `tolerance`, is not a number, or the two are not equally long.
 */
export function compareLogprobs(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
): number {
  requireSameLength(actual, expected);
  let largest = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs(actual[i]! - expected[i]!);
    if (!(difference <= tolerance))
      throw new Error(`logprob ${i}: ${actual[i]}, expected ${expected[i]} (allowed ±${tolerance})`);
    largest = Math.max(largest, difference);
  }
  return largest;
}

/**
 * Compares the likeliest tokens of one position. Their log-probabilities must agree rank by rank, and each token the
 * reference lists must be listed with its own log-probability, unless it is so near the end of the list that another
 * may have taken its place.
 *
 * @throws Error when they differ by more than `tolerance`, or the two are not equally long.
 */
export function compareTopLogprobs(actual: TopLogprobs, expected: TopLogprobs, tolerance: number): void {
  requireSameLength(actual.ids, actual.logprobs);
  compareLogprobs(actual.logprobs, expected.logprobs, tolerance);
  const last = expected.logprobs.at(-1)!;
  for (const [rank, id] of expected.ids.entries()) {
    const wanted = expected.logprobs[rank]!;
    const found = actual.logprobs[actual.ids.indexOf(id)];
    if (found === undefined ? wanted - last > 2 * tolerance : Math.abs(found - wanted) > tolerance)
      throw new Error(
        `token ${id}: logprob ${found ?? "not listed"}, expected ${wanted} (allowed ±${tolerance})`,
      );
  }
}

function requireSameLength(actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  if (actual.length !== expected.length)
    throw new Error(`compared ${actual.length} values with ${expected.length}`);
}
