import type { LinearActivation } from "../backend.ts";
import { activation, gatedActivation } from "./activation.ts";
import type { RowSource } from "./dequantise.ts";
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

/** A weight in host memory: the floats themselves, or what they are computed from. */
export type HostWeight = Float32Array | RowSource;

/** Rows [start, end) of a weight with k columns. */
export function rowsOfWeight(weight: HostWeight, start: number, end: number, k: number): HostWeight {
  if (weight instanceof Float32Array) return weight.subarray(start * k, end * k);
  return {
    dequantise: (target, first, last) => weight.dequantise(target, start + first, start + last),
  };
}

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

/** Rows of a weight that are dequantised at a time: a tile stays in the second-level cache while all tokens pass. */
const TILE_BYTES = 2 ** 18;

/** Writes out[m, n] = x[m, k] · weight[n, k]ᵀ. */
function multiplyBy(
  weight: HostWeight,
  out: Float32Array,
  x: Float32Array,
  { m, n, k }: { readonly m: number; readonly n: number; readonly k: number },
  multiply: Product,
): void {
  if (weight instanceof Float32Array) {
    multiply(out, x, weight, m, n, k);
    return;
  }
  const tileRows = Math.min(n, Math.max(4, Math.floor(TILE_BYTES / (4 * k))));
  const tile = new Float32Array(tileRows * k);
  const y = new Float32Array(m * tileRows);
  for (let start = 0; start < n; start += tileRows) {
    const count = Math.min(tileRows, n - start);
    weight.dequantise(tile, start, start + count);
    multiply(y, x, tile, m, count, k);
    for (let row = 0; row < m; row++) out.set(y.subarray(row * count, (row + 1) * count), row * n + start);
  }
}

/** See `Backend.linear`. */
export function linear(
  out: Float32Array,
  x: Float32Array,
  weight: HostWeight,
  { m, n, k }: { readonly m: number; readonly n: number; readonly k: number },
  fusion: HostFusion,
  multiply: Product,
): void {
  const input = fusion.norm === undefined ? x : new Float32Array(m * k);
  if (fusion.norm !== undefined) rmsNorm(input, x, fusion.norm.weight, fusion.norm.eps);

  const inPlace = fusion.addTo === undefined && !fusion.activation?.gated;
  const y = inPlace ? out : new Float32Array(m * n);
  multiplyBy(weight, y, input, { m, n, k }, multiply);

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
