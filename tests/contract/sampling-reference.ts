import type { SlotParams } from "./slot-table.ts";

/** Sampling written as its definition, in float64 and big integers. */

/** Logits [V] after mask, bad words, edits and penalties, for the token after `history` (positions 0 … p). */
export function processLogits(
  logits: ArrayLike<number>,
  slot: SlotParams,
  history: readonly number[],
): Float64Array {
  const out = new Float64Array(logits);
  if (slot.allowed) {
    for (let token = 0; token < out.length; token++) {
      if (!slot.allowed.includes(token)) out[token] = -Infinity;
    }
  }
  for (const sequence of slot.badWords ?? []) {
    const prefix = sequence.slice(0, -1);
    const tail = prefix.length === 0 ? [] : history.slice(-prefix.length);
    if (tail.join() === prefix.join()) out[sequence.at(-1)!] = -Infinity;
  }
  for (const { token, value, until } of slot.edits ?? []) {
    if (history.length < until) out[token]! += Math.fround(value);
  }
  const { repetitionPenalty, frequencyPenalty, presencePenalty } = slot;
  if (repetitionPenalty === undefined) return out;
  const prompt = history.slice(0, slot.promptLength);
  const generated = history.slice(slot.promptLength);
  for (let token = 0; token < out.length; token++) {
    const count = generated.filter((id) => id === token).length;
    if (count === 0 && !prompt.includes(token)) continue;
    const penalty = Math.fround(repetitionPenalty);
    out[token] = out[token]! > 0 ? out[token]! / penalty : out[token]! * penalty;
    if (count > 0) {
      out[token]! -= Math.fround(frequencyPenalty ?? 0) * count + Math.fround(presencePenalty ?? 0);
    }
  }
  return out;
}

/** Softmax probabilities at the slot's temperature. */
function probabilities(logits: ArrayLike<number>, temperature: number): Float64Array {
  const scaled = Float64Array.from(logits, (logit) => logit / temperature);
  const max = scaled.reduce((a, b) => Math.max(a, b), -Infinity);
  const weights = scaled.map((value) => Math.exp(value - max));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

/**
 * Probability of each token after min-p, top-k and top-p (0 = cut). `slack` widens min-p and top-p by a relative
 * amount, to bound what a float32 implementation may keep.
 */
export function distribution(logits: ArrayLike<number>, slot: SlotParams, slack = 0): Float64Array {
  const all = probabilities(logits, Math.fround(slot.temperature ?? 1));
  const minP = Math.fround(slot.minP ?? 0) * (1 - slack);
  const topP = Math.fround(slot.topP ?? 1) * (1 + slack);
  const topK = slot.topK ?? 0;
  const order = [...all.keys()].sort((a, b) => all[b]! - all[a]!);
  const best = all[order[0]!]!;
  let kept = order.filter((token) => all[token]! > 0 && all[token]! >= minP * best);
  if (topK > 0 && topK < kept.length) {
    const last = all[kept[topK - 1]!]!;
    kept = kept.filter((token) => all[token]! >= last);
  }
  const mass = kept.reduce((sum, token) => sum + all[token]!, 0);
  if (topP < 1) {
    let [count, cumulative] = [0, 0];
    do cumulative += all[kept[count++]!]!;
    while (cumulative < topP * mass && count < kept.length);
    const last = all[kept[count - 1]!]!;
    kept = kept.filter((token) => all[token]! >= last);
  }
  const total = kept.reduce((sum, token) => sum + all[token]!, 0);
  const result = new Float64Array(all.length);
  for (const token of kept) result[token] = all[token]! / total;
  return result;
}

const MASK = 0xffffffffn;

/** Philox4x32-10 on big integers. */
export function philox(counter: readonly number[], key: readonly number[]): bigint[] {
  let [c0, c1, c2, c3] = counter.map(BigInt) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key.map(BigInt) as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const p0 = 0xd2511f53n * c0;
    const p1 = 0xcd9e8d57n * c2;
    [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & MASK, (p0 >> 32n) ^ c3 ^ k1, p0 & MASK];
    k0 = (k0 + 0x9e3779b9n) & MASK;
    k1 = (k1 + 0xbb67ae85n) & MASK;
  }
  return [c0, c1, c2, c3];
}

/**
 * Throws unless `token` is what Gumbel-max draws for the token at `sampledPosition`, up to float32 errors in scores
 * and in the bounds of min-p and top-p.
 */
export function expectDraw(
  label: string,
  token: number,
  logits: ArrayLike<number>,
  slot: SlotParams,
  sampledPosition: number,
): void {
  const temperature = Math.fround(slot.temperature ?? 1);
  const kept = distribution(logits, slot);
  const [seedLow, seedHigh] = slot.seed ?? [0, 0];
  let [group, block] = [-1, [] as readonly bigint[]];
  const score = (id: number) => {
    if (id >>> 2 !== group) block = philox([id >>> 2, sampledPosition, 0, 0], [seedLow, seedHigh]);
    group = id >>> 2;
    const uniform = (Number(block[id & 3]!) + 0.5) * 2 ** -32;
    return logits[id]! / temperature - Math.log(-Math.log(uniform));
  };
  if (!(distribution(logits, slot, 1e-5)[token]! > 0)) throw new Error(`${label}: token ${token} was cut`);
  const own = score(token);
  const tolerance = 1e-4 + 1e-6 * Math.abs(own);
  for (let id = 0; id < kept.length; id++) {
    if (kept[id] === 0 || id === token) continue;
    const other = score(id);
    if (other > own + tolerance) {
      throw new Error(`${label}: token ${token} scores ${own}, token ${id} scores ${other}`);
    }
  }
}
