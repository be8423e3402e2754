import type { LinearActivation } from "../backend.ts";
import { activation, gatedActivation } from "./activation.ts";
import { rmsNorm } from "./norm.ts";

/** Writes out[m, n] = x[m, k] · weight[n, k]ᵀ. */
export type Product = (
  out: Float32Array,
  x: Float32Array,
  weight: Float32Array,
  m: number,
  n: number,
  k: number,
) => void;

/** `LinearFusion` in host memory. */
export interface HostFusion {
  readonly norm: { readonly weight: Float32Array; readonly eps: number } | undefined;
  readonly bias: Float32Array | undefined;
  readonly activation: LinearActivation | undefined;
  readonly addTo: Float32Array | undefined;
}

/** The definition; sums are float64. */
export const product: Product = (out, x, weight, m, n, k) => {
  for (let row = 0; row < m; row++) {
    for (let column = 0; column < n; column++) out[row * n + column] = dot(x, row * k, weight, column * k, k);
  }
};

/** Σ a[aStart + i] · b[bStart + i] over `length` elements. */
export function dot(
  a: Float32Array,
  aStart: number,
  b: Float32Array,
  bStart: number,
  length: number,
): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += a[aStart + i]! * b[bStart + i]!;
  return sum;
}

/** See `Backend.linear`. */
export function linear(
  out: Float32Array,
  x: Float32Array,
  weight: Float32Array,
  { m, n, k }: { readonly m: number; readonly n: number; readonly k: number },
  fusion: HostFusion,
  multiply: Product,
): void {
  const input = fusion.norm === undefined ? x : new Float32Array(m * k);
  if (fusion.norm !== undefined) rmsNorm(input, x, fusion.norm.weight, fusion.norm.eps);

  const inPlace = fusion.addTo === undefined && !fusion.activation?.gated;
  const y = inPlace ? out : new Float32Array(m * n);
  multiply(y, input, weight, m, n, k);

  if (fusion.bias !== undefined) addBias(y, fusion.bias);
  if (fusion.activation !== undefined) activate(out, y, n, fusion.activation);
  if (fusion.addTo !== undefined) for (const i of y.keys()) out[i] = fusion.addTo[i]! + y[i]!;
}

function addBias(y: Float32Array, bias: Float32Array): void {
  for (let start = 0; start < y.length; start += bias.length) {
    for (let i = 0; i < bias.length; i++) y[start + i]! += bias[i]!;
  }
}

function activate(out: Float32Array, y: Float32Array, n: number, { kind, gated }: LinearActivation): void {
  if (gated) gatedActivation(out, y, n / 2, kind);
  else activation(out, y, kind);
}
