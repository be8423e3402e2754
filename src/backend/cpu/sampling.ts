import { NotDrawn } from "../../base/not-drawn.ts";
import { philox4x32 } from "./philox.ts";
import type { Slot } from "./slots.ts";

/**
 * The token that a row of logits proposes, and its key: of several candidates the one with the greatest key is drawn, the lowest
 * token on ties. NaN stands for a row that has one, −∞ for one that has nothing above that; the token is then −1.
 */
export interface Candidate {
  readonly token: number;
  readonly key: number;
}

/**
 * Draws the token that follows `position` from one row of logits [V] and appends it to the slot's sequence. A `NotDrawn`,
 * and nothing appended, when the row has a NaN or nothing above −∞.
 */
export function sampleRow(logits: Float32Array, slot: Slot, position: number): number {
  return accept(candidateOf(logits, slot, position), slot);
}

/**
 * The best of the tokens from `firstToken` on, of which `logits` are. With less than the vocabulary the slot must ask for no
 * more than a temperature: min-p, top-k and top-p need all logits.
 */
export function candidateOf(logits: Float32Array, slot: Slot, position: number, firstToken = 0): Candidate {
  const max = largest(logits);
  if (Number.isNaN(max) || max === -Infinity) return { token: -1, key: max };
  const temperature = slot.float("temperature");
  if (temperature === 0) return { token: firstToken + logits.indexOf(max), key: max };
  const threshold = survivalThreshold(logits, max, temperature, slot);
  return gumbelArgmax(logits, temperature, threshold, slot, position + 1, firstToken);
}

/** The candidate that is drawn of those of neighbouring parts, in their order. */
export function bestOf(candidates: readonly Candidate[]): Candidate {
  return candidates.reduce((best, candidate) =>
    Number.isNaN(candidate.key) || candidate.key > best.key ? candidate : best,
  );
}

/** Appends what was drawn to the slot's sequence. @returns the token, or a `NotDrawn`. */
export function accept({ token, key }: Candidate, slot: Slot): number {
  if (Number.isNaN(key)) return NotDrawn.notANumber;
  if (key === -Infinity) return NotDrawn.nothingAllowed;
  slot.append(token);
  return token;
}

/** The maximum; NaN when there is one. */
function largest(logits: Float32Array): number {
  let max = -Infinity;
  for (let i = 0; i < logits.length; i++) {
    const logit = logits[i]!;
    if (!(logit <= max)) max = logit;
    if (Number.isNaN(max)) break;
  }
  return max;
}

/**
 * The least logit / temperature that min-p, top-k and top-p leave: each keeps the most likely tokens down to some
 * value, ties included, so that the three together are one threshold.
 */
function survivalThreshold(logits: Float32Array, max: number, temperature: number, slot: Slot): number {
  const top = max / temperature;
  const minP = slot.float("minP");
  const topK = slot.word("topK") | 0;
  const topP = slot.float("topP");
  let threshold = minP > 0 ? top + Math.log(minP) : -Infinity;
  if ((topK <= 0 || topK >= logits.length) && topP >= 1) return threshold;

  const ascending = Float64Array.from(logits, (logit) => logit / temperature).sort();
  const last = ascending.length - 1;
  if (topK > 0 && topK < ascending.length) threshold = Math.max(threshold, ascending[last + 1 - topK]!);
  if (topP >= 1) return threshold;

  const weight = (scaled: number) => (scaled === top ? 1 : Math.exp(scaled - top));
  let total = 0;
  for (let i = last; i >= 0 && ascending[i]! >= threshold; i--) total += weight(ascending[i]!);
  let cumulative = 0;
  for (let i = last; i >= 0 && ascending[i]! >= threshold; i--) {
    cumulative += weight(ascending[i]!);
    if (cumulative >= topP * total) return ascending[i]!;
  }
  return threshold;
}

/**
 * The token with the greatest logit / temperature + Gumbel noise among those at or above `threshold`: a draw from
 * their softmax. The noise of a token depends on the slot's seed and the sampled token's position alone.
 */
function gumbelArgmax(
  logits: Float32Array,
  temperature: number,
  threshold: number,
  slot: Slot,
  sampledPosition: number,
  firstToken: number,
): Candidate {
  const [seedLow, seedHigh] = [slot.word("seedLow"), slot.word("seedHigh")];
  const random = new Uint32Array(4);
  let best = -1;
  let bestScore = -Infinity;
  let group = -1;
  for (let i = 0; i < logits.length; i++) {
    const token = firstToken + i;
    const scaled = logits[i]! / temperature;
    if (scaled < threshold || scaled === -Infinity) continue;
    if (token >>> 2 !== group) {
      group = token >>> 2;
      philox4x32(random, group, sampledPosition, 0, 0, seedLow, seedHigh);
    }
    const uniform = (random[token & 3]! + 0.5) * 2 ** -32;
    const score = scaled - Math.log(-Math.log(uniform));
    if (score > bestScore) {
      best = token;
      bestScore = score;
    }
  }
  return { token: best, key: bestScore };
}
