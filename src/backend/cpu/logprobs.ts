/** The results of all rows: chosen[R], ranks[R], topIds[R, top] and topLogprobs[R, top]. */
export interface LogprobArrays {
  readonly chosen: Float32Array;
  readonly ranks: Int32Array;
  readonly topIds: Int32Array;
  readonly topLogprobs: Float32Array;
  readonly top: number;
}

/**
 * Writes row `row` of `out`: the log-softmax of logits [V] at `token`, the number of tokens that are strictly more likely, and the `top`
 * most likely, lowest id first on ties. A token outside the vocabulary (−1, of a failed row) has NaN and rank −1.
 */
export function logprobsRow(out: LogprobArrays, row: number, logits: Float32Array, token: number): void {
  const logNormaliser = logSumExp(logits);
  const valid = 0 <= token && token < logits.length;
  const chosen = valid ? logits[token]! : Number.NaN;
  let rank = 0;
  for (let i = 0; i < logits.length; i++) if (logits[i]! > chosen) rank++;
  out.chosen[row] = chosen - logNormaliser;
  out.ranks[row] = valid ? rank : -1;
  if (out.top === 0) return;
  mostLikely(logits, out.top).forEach((id, i) => {
    out.topIds[row * out.top + i] = id;
    out.topLogprobs[row * out.top + i] = logits[id]! - logNormaliser;
  });
}

function logSumExp(logits: Float32Array): number {
  let max = -Infinity;
  for (let i = 0; i < logits.length; i++) max = Math.max(max, logits[i]!);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - max);
  return max + Math.log(sum);
}

/** Ids of the `count` largest logits, best first. */
function mostLikely(logits: Float32Array, count: number): number[] {
  const best: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    if (best.length === count && !(logits[id]! > logits[best[count - 1]!]!)) continue;
    if (best.length === count) best.pop();
    let at = best.length;
    while (at > 0 && logits[id]! > logits[best[at - 1]!]!) at--;
    best.splice(at, 0, id);
  }
  return best;
}
