import type { Activation } from "../../src/backend/backend.ts";
import type { ExpertActivation } from "../../src/backend/experts.ts";
import type { Expected } from "./compare.ts";

/** The ops written as their definitions, one output element at a time, in float64. */

type Values = ArrayLike<number>;

/** Fills [rows, columns] with `element`, which returns a value and, when it is a sum, the size of its terms. */
function tabulate(
  rows: number,
  columns: number,
  element: (row: number, column: number) => number | readonly [value: number, magnitude: number],
): Expected {
  const values = new Float64Array(rows * columns);
  const magnitudes = new Float64Array(rows * columns);
  for (let i = 0; i < values.length; i++) {
    const result = element(Math.floor(i / columns), i % columns);
    [values[i], magnitudes[i]] = typeof result === "number" ? [result, Math.abs(result)] : result;
  }
  return { values, magnitudes };
}

export function linear(x: Values, weight: Values, bias: Values | undefined, n: number, k: number): Expected {
  const [inputs, matrix] = [doubles(x), doubles(weight)];
  const values = new Float64Array((x.length / k) * n);
  const magnitudes = new Float64Array(values.length);
  for (let at = 0; at < values.length; at++) {
    const column = at % n;
    let value = bias?.[column] ?? 0;
    let magnitude = Math.abs(value);
    const [from, weights] = [((at - column) / n) * k, column * k];
    for (let i = 0; i < k; i++) {
      const term = inputs[from + i]! * matrix[weights + i]!;
      value += term;
      magnitude += Math.abs(term);
    }
    values[at] = value;
    magnitudes[at] = magnitude;
  }
  return { values, magnitudes };
}

/** Numbers in an array of one kind, over which loops are fast: themselves where they are in one. */
function doubles(values: Values): Float64Array {
  return values instanceof Float64Array ? values : new Float64Array(values);
}

/** The first `count` elements of a result. */
export function firstOf({ values, magnitudes }: Expected, count: number): Expected {
  return { values: values.subarray(0, count), magnitudes: magnitudes.subarray(0, count) };
}

/** a + b, of a result and exact values. */
export function plus(a: Expected, b: Values): Expected {
  return tabulate(1, b.length, (_, i) => [a.values[i]! + b[i]!, a.magnitudes[i]! + Math.abs(b[i]!)]);
}

export function rmsNorm(x: Values, weight: Values, eps: number): Expected {
  const width = weight.length;
  const rows = x.length / width;
  const rms = Array.from({ length: rows }, (_, row) => {
    let squares = 0;
    for (let i = 0; i < width; i++) squares += x[row * width + i]! ** 2;
    return Math.sqrt(squares / width + eps);
  });
  return tabulate(rows, width, (row, i) => (x[row * width + i]! / rms[row]!) * weight[i]!);
}

export function layerNorm(x: Values, weight: Values, bias: Values | undefined, eps: number): Expected {
  const width = weight.length;
  const rows = x.length / width;
  const moments = Array.from({ length: rows }, (_, row) => {
    let mean = 0;
    for (let i = 0; i < width; i++) mean += x[row * width + i]! / width;
    let variance = 0;
    for (let i = 0; i < width; i++) variance += (x[row * width + i]! - mean) ** 2 / width;
    return { mean, deviation: Math.sqrt(variance + eps) };
  });
  return tabulate(rows, width, (row, i) => {
    const { mean, deviation } = moments[row]!;
    const value = x[row * width + i]!;
    const shift = bias?.[i] ?? 0;
    const gain = weight[i]! / deviation;
    return [
      (value - mean) * gain + shift,
      (Math.abs(value) + Math.abs(mean)) * Math.abs(gain) + Math.abs(shift),
    ];
  });
}

/** The integral of the normal density from −∞ to x, by Simpson's rule. */
function normalCdf(x: number): number {
  const steps = 400;
  const h = x / steps;
  let sum = 0;
  for (let i = 0; i <= steps; i++) {
    const coefficient = i === 0 || i === steps ? 1 : i % 2 === 1 ? 4 : 2;
    sum += coefficient * Math.exp(-((i * h) ** 2) / 2);
  }
  return 0.5 + (sum * h) / 3 / Math.sqrt(2 * Math.PI);
}

const ACTIVATIONS: Record<Activation, (x: number) => number> = {
  silu: (x) => x / (1 + Math.exp(-x)),
  gelu: (x) => x * normalCdf(x),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

export function activation(x: Values, name: Activation): Expected {
  return tabulate(1, x.length, (_, i) => [ACTIVATIONS[name](x[i]!), Math.abs(x[i]!)]);
}

export function gatedActivation(gateUp: Values, width: number, name: Activation): Expected {
  return tabulate(gateUp.length / (2 * width), width, (row, i) => {
    const gate = gateUp[row * 2 * width + i]!;
    const up = gateUp[row * 2 * width + width + i]!;
    return [ACTIVATIONS[name](gate) * up, Math.abs(gate * up)];
  });
}

/** `gatedActivation` of a result, whose errors pass to both factors of a product. */
export function gatedOf({ values, magnitudes }: Expected, width: number, name: Activation): Expected {
  return tabulate(values.length / (2 * width), width, (row, i) => {
    const [gate, up] = [row * 2 * width + i, row * 2 * width + width + i];
    const activated = ACTIVATIONS[name](values[gate]!);
    const magnitude = magnitudes[gate]! * Math.abs(values[up]!) + Math.abs(activated) * magnitudes[up]!;
    return [activated * values[up]!, magnitude];
  });
}

/** An expert's act(gate, up) of a result [T, 2 · width]. */
export function activatedOf(both: Expected, width: number, activation: ExpertActivation): Expected {
  if (activation.kind !== "limited_swiglu") return gatedOf(both, width, activation.kind);
  const { alpha, limit } = activation;
  const { values, magnitudes } = both;
  return tabulate(values.length / (2 * width), width, (row, i) => {
    const [gate, up] = [row * 2 * width + i, row * 2 * width + width + i];
    const [x, y] = [Math.min(values[gate]!, limit), Math.min(Math.max(values[up]!, -limit), limit) + 1];
    const activated = x / (1 + Math.exp(-alpha * x));
    // The activation is at most 1.1 steep.
    const magnitude = 1.1 * magnitudes[gate]! * Math.abs(y) + Math.abs(activated) * (magnitudes[up]! + 1);
    return [activated * y, magnitude];
  });
}

/** Element `i` of one head after rotation by the angles of `position`. */
export function rotated(
  head: Values,
  i: number,
  cosSin: Values,
  rotaryDim: number,
  position: number,
): [value: number, magnitude: number] {
  if (i >= rotaryDim) return [head[i]!, 0];
  const half = rotaryDim / 2;
  const cos = cosSin[position * rotaryDim + (i % half)]!;
  const sin = cosSin[position * rotaryDim + half + (i % half)]!;
  const [own, other] = [head[i]! * cos, head[(i + half) % rotaryDim]! * sin];
  return [i < half ? own - other : own + other, Math.abs(own) + Math.abs(other)];
}

/** Rotates the first `heads` heads of each row of x[T, width]. */
export function rotary(
  x: Float32Array,
  width: number,
  heads: number,
  headDim: number,
  cosSin: Values,
  rotaryDim: number,
  positions: readonly number[],
): Expected {
  const values = Float64Array.from(x);
  const magnitudes = new Float64Array(x.length);
  for (const [t, position] of positions.entries()) {
    for (let head = 0; head < heads; head++) {
      const start = t * width + head * headDim;
      const own = x.subarray(start, start + headDim);
      for (let i = 0; i < rotaryDim; i++)
        [values[start + i], magnitudes[start + i]] = rotated(own, i, cosSin, rotaryDim, position);
    }
  }
  return { values, magnitudes };
}

/** One row of a batch: its query tokens start at `firstToken`; its context is contiguous here. */
export interface ReferenceRow {
  readonly firstToken: number;
  readonly queryLen: number;
  readonly contextLen: number;
  /** Both [contextLen, numKvHeads, headDim]. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

export function attention(
  qkv: Values,
  tokens: number,
  rows: readonly ReferenceRow[],
  spec: {
    numHeads: number;
    numKvHeads: number;
    headDim: number;
    scale: number;
    window: number;
    softCap?: number | undefined;
    sinks?: Values | undefined;
    /** There are queries alone. */
    readsOnly?: boolean | undefined;
  },
): Expected {
  const { numHeads, numKvHeads, headDim, scale, window, softCap, sinks, readsOnly } = spec;
  const width = (readsOnly ? numHeads : numHeads + 2 * numKvHeads) * headDim;
  const queries = new Float64Array(qkv);
  const values = new Float64Array(tokens * numHeads * headDim);
  const magnitudes = new Float64Array(values.length);
  for (const row of rows) {
    for (let t = 0; t < row.queryLen; t++) {
      const token = row.firstToken + t;
      const position = row.contextLen - row.queryLen + t;
      const first = window === 0 ? 0 : Math.max(0, position - window + 1);
      for (let head = 0; head < numHeads; head++) {
        const kvHead = Math.floor((head * numKvHeads) / numHeads);
        const at = (p: number) => (p * numKvHeads + kvHead) * headDim;
        const query = queries.subarray(token * width + head * headDim);
        const weights = new Float64Array(position + 1 - first);
        for (let j = 0; j < weights.length; j++) {
          const start = at(first + j);
          let score = 0;
          for (let i = 0; i < headDim; i++) score += query[i]! * row.keys[start + i]!;
          weights[j] = softCap === undefined ? score * scale : softCap * Math.tanh((score * scale) / softCap);
        }
        const max = weights.reduce((most, score) => Math.max(most, score), -Infinity);
        let total = sinks === undefined ? 0 : Math.exp(sinks[head]! - max);
        for (let j = 0; j < weights.length; j++) {
          weights[j] = Math.exp(weights[j]! - max);
          total += weights[j]!;
        }
        const target = (token * numHeads + head) * headDim;
        for (let j = 0; j < weights.length; j++) {
          const start = at(first + j);
          const weight = weights[j]! / total;
          for (let i = 0; i < headDim; i++) {
            const term = weight * row.values[start + i]!;
            values[target + i]! += term;
            magnitudes[target + i]! += Math.abs(term);
          }
        }
      }
    }
  }
  return { values, magnitudes };
}

/** Natural logarithm of the sum of exponentials. */
export function logSumExp(logits: Values): number {
  let max = -Infinity;
  for (let i = 0; i < logits.length; i++) max = Math.max(max, logits[i]!);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i]! - max);
  return max + Math.log(sum);
}
