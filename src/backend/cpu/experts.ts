import type { ExpertActivation, ExpertSpec } from "../experts.ts";
import { gatedFunction } from "./activation.ts";
import { type HostFusion, type HostWeight, linear, type Product, rowsOfWeight } from "./linear.ts";
import { rmsNorm } from "./norm.ts";

/** What changes a router's logits, and the weights that follow from them; see `ExpertWeights`. */
export interface HostRouting {
  readonly bias: Float32Array | undefined;
  readonly scales: Float32Array | undefined;
}

/** `ExpertWeights` in host memory. */
export interface HostExperts {
  readonly routing: HostRouting;
  readonly gateUp: HostWeight;
  readonly down: HostWeight;
  readonly gateUpBias: Float32Array | undefined;
  readonly downBias: Float32Array | undefined;
}

export interface ExpertsShape {
  readonly tokens: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly count: number;
}

/** A token's share in an expert: its index among the k of the token, and the expert's weight. */
export interface Share {
  readonly token: number;
  readonly rank: number;
  readonly weight: number;
}

/** See `ExpertOps.experts`. */
export function experts(
  out: Float32Array,
  x: Float32Array,
  logits: Float32Array,
  weights: HostExperts,
  shape: ExpertsShape,
  spec: ExpertSpec,
  { norm, addTo }: Pick<HostFusion, "norm" | "addTo">,
  multiply: Product,
): void {
  const { tokens, hidden } = shape;
  const { perToken } = spec;
  const input = norm === undefined ? x : new Float32Array(x.length);
  if (norm !== undefined) rmsNorm(input, x, norm.weight, norm.eps);
  // Terms of each token in the order of its logits, whatever the order in which experts compute them.
  const terms = new Float64Array(tokens * perToken * hidden);
  for (const [expert, shares] of sharesOf(logits, weights.routing, shape, spec).entries()) {
    if (shares.length === 0) continue;
    const rows = new Float32Array(shares.length * hidden);
    for (const [i, { token }] of shares.entries())
      rows.set(input.subarray(token * hidden, (token + 1) * hidden), i * hidden);
    const y = expertOutputs(rows, expert, weights, shape, spec.activation, multiply);
    for (const [i, { token, rank, weight }] of shares.entries()) {
      const term = (token * perToken + rank) * hidden;
      for (let column = 0; column < hidden; column++) terms[term + column] = weight * y[i * hidden + column]!;
    }
  }
  for (let token = 0; token < tokens; token++) {
    for (let column = 0; column < hidden; column++) {
      const at = token * hidden + column;
      let sum = addTo?.[at] ?? 0;
      for (let rank = 0; rank < perToken; rank++) sum += terms[(token * perToken + rank) * hidden + column]!;
      out[at] = sum;
    }
  }
}

/** The tokens of each expert, in their order. */
export function sharesOf(
  logits: Float32Array,
  { bias, scales }: HostRouting,
  { tokens, count }: ExpertsShape,
  spec: ExpertSpec,
): Share[][] {
  const shares = Array.from({ length: count }, (): Share[] => []);
  for (let token = 0; token < tokens; token++) {
    const row = logits.subarray(token * count, (token + 1) * count);
    const biased = bias === undefined ? row : row.map((logit, expert) => logit + bias[expert]!);
    const chosen = chooseExperts(biased, spec);
    for (const [rank, { expert, weight }] of chosen.entries())
      shares[expert]!.push({ token, rank, weight: weight * (scales?.[expert] ?? 1) });
  }
  return shares;
}

/** A token's experts by its logits, the greatest first. */
export function chooseExperts(
  logits: Float32Array,
  { perToken, softmaxOver }: ExpertSpec,
): { readonly expert: number; readonly weight: number }[] {
  const order = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const chosen = order.slice(0, perToken);
  const most = logits[chosen[0]!]!;
  const exponential = (expert: number) => Math.exp(logits[expert]! - most);
  const all = softmaxOver === "all" ? order : chosen;
  const total = all.reduce((sum, expert) => sum + exponential(expert), 0);
  return chosen.map((expert) => ({ expert, weight: exponential(expert) / total }));
}

/** down · act(gateUp · rows), [rows, H], of one expert. */
function expertOutputs(
  rows: Float32Array,
  expert: number,
  { gateUp, down, gateUpBias, downBias }: HostExperts,
  { hidden, intermediate }: ExpertsShape,
  activation: ExpertActivation,
  multiply: Product,
): Float32Array {
  const m = rows.length / hidden;
  const product = (
    x: Float32Array,
    weight: HostWeight,
    bias: Float32Array | undefined,
    n: number,
    k: number,
  ): Float32Array => {
    const y = new Float32Array(m * n);
    const [first, end] = [expert * n, (expert + 1) * n];
    const fusion = {
      norm: undefined,
      bias: bias?.subarray(first, end),
      activation: undefined,
      addTo: undefined,
    };
    linear(y, x, rowsOfWeight(weight, first, end, k), { m, n, k }, fusion, multiply);
    return y;
  };
  const both = product(rows, gateUp, gateUpBias, 2 * intermediate, hidden);
  const activated = new Float32Array(m * intermediate);
  const act = gatedFunction(activation);
  for (let row = 0; row < m; row++) {
    for (let i = 0; i < intermediate; i++) {
      const at = 2 * row * intermediate + i;
      activated[row * intermediate + i] = act(both[at]!, both[at + intermediate]!);
    }
  }
  return product(activated, down, downBias, hidden, intermediate);
}
