import type { Activation } from "../backend.ts";
import type { ExpertActivation } from "../experts.ts";

const FUNCTIONS: Record<Activation, (x: number) => number> = { silu, gelu, gelu_tanh: geluTanh };

/** out[i] = act(x[i]); `out` may be `x`. */
export function activation(out: Float32Array, x: Float32Array, name: Activation): void {
  const act = FUNCTIONS[name];
  for (let i = 0; i < x.length; i++) out[i] = act(x[i]!);
}

/** out[T, width] = act(gateUp[T, 0:width]) · gateUp[T, width:2·width]. */
export function gatedActivation(
  out: Float32Array,
  gateUp: Float32Array,
  width: number,
  name: Activation,
): void {
  const act = FUNCTIONS[name];
  for (let start = 0; start < out.length; start += width) {
    for (let i = 0; i < width; i++) {
      out[start + i] = act(gateUp[2 * start + i]!) * gateUp[2 * start + width + i]!;
    }
  }
}

/** act(gate, up) of an expert. */
export function gatedFunction(activation: ExpertActivation): (gate: number, up: number) => number {
  if (activation.kind !== "limited_swiglu") {
    const act = FUNCTIONS[activation.kind];
    return (gate, up) => act(gate) * up;
  }
  const { alpha, limit } = activation;
  return (gate, up) => {
    const limited = Math.min(gate, limit);
    return (Math.min(Math.max(up, -limit), limit) + 1) * (limited / (1 + Math.exp(-alpha * limited)));
  };
}

/** x[T, width] = sigmoid(gate[T]) · x. */
export function gateRows(x: Float32Array, gate: Float32Array, width: number): void {
  for (const [row, value] of gate.entries()) {
    const factor = 1 / (1 + Math.exp(-value));
    for (let i = row * width; i < (row + 1) * width; i++) x[i]! *= factor;
  }
}

function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

function gelu(x: number): number {
  return 0.5 * x * (1 + erf(x * Math.SQRT1_2));
}

function geluTanh(x: number): number {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

/**
 * The error function: 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!, whose terms are all of one sign. It is ±1 to double
 * precision beyond |x| = 6.
 */
function erf(x: number): number {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** x[T, width] = x · factors[T, stride] at columns from `start` on. */
export function multiplyColumns(
  x: Float32Array,
  factors: Float32Array,
  width: number,
  stride: number,
  start: number,
): void {
  for (let row = 0; row * width < x.length; row++) {
    const from = row * stride + start;
    for (let i = 0; i < width; i++) x[row * width + i]! *= factors[from + i]!;
  }
}
