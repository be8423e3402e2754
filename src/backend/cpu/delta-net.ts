import { invariant } from "../../base/errors.ts";
import type { DeltaNetShape } from "../delta-net.ts";
import type { RaggedRows } from "./attention.ts";
import { rmsNormRow } from "./norm.ts";

/** Added to the sum of squares that queries and keys are divided by. */
const UNIT_EPSILON = 1e-6;

/** `DeltaNetSpec` in host memory. */
export interface HostDeltaNet extends DeltaNetShape {
  readonly channels: number;
  readonly convolution: Float32Array;
  readonly decayLog: Float32Array;
  readonly timeBias: Float32Array;
  readonly norm: { readonly weight: Float32Array; readonly eps: number };
}

/** `StateCache` in host memory. */
export interface HostStates {
  readonly slots: number;
  readonly layers: number;
  readonly layer: number;
  readonly tails: Float32Array;
  readonly states: Float32Array;
}

/** See `DeltaNetOps.deltaNet`: token by token, as the recurrence is defined. */
export function deltaNet(
  out: Float32Array,
  projected: Float32Array,
  gates: Float32Array,
  cache: HostStates,
  { cuSeqlensQ, contextLens, rowSlots }: Pick<RaggedRows, "cuSeqlensQ" | "contextLens" | "rowSlots">,
  spec: HostDeltaNet,
): void {
  const { channels, numKeyHeads, keyDim, numValueHeads, valueDim } = spec;
  const [width, keys] = [channels + numValueHeads * valueDim, numKeyHeads * keyDim];
  const x = new Float64Array(channels);
  for (const [row, slot] of rowSlots.entries()) {
    invariant(0 <= slot && slot < cache.slots, `deltaNet: slot ${slot} of ${cache.slots}`);
    const { tail, state } = slotOf(cache, slot, spec);
    const [first, end] = [cuSeqlensQ[row]!, cuSeqlensQ[row + 1]!];
    const start = contextLens[row]! - (end - first);
    if (start === 0) state.fill(0);
    for (let t = first; t < end; t++) {
      convolve(x, projected.subarray(t * width, t * width + channels), tail, start + t - first, spec);
      for (let head = 0; head < 2 * numKeyHeads; head++)
        makeUnit(x.subarray(head * keyDim, (head + 1) * keyDim), head < numKeyHeads ? keyDim ** -0.5 : 1);
      for (let head = 0; head < numValueHeads; head++) {
        const ofKeys = Math.floor((head * numKeyHeads) / numValueHeads) * keyDim;
        const o = out.subarray(
          (t * numValueHeads + head) * valueDim,
          (t * numValueHeads + head + 1) * valueDim,
        );
        const gate = 2 * t * numValueHeads + head;
        const [b, a] = [gates[gate]!, gates[gate + numValueHeads]!];
        step(o, state.subarray(head * keyDim * valueDim, (head + 1) * keyDim * valueDim), {
          q: x.subarray(ofKeys, ofKeys + keyDim),
          k: x.subarray(keys + ofKeys, keys + ofKeys + keyDim),
          v: x.subarray(2 * keys + head * valueDim, 2 * keys + (head + 1) * valueDim),
          decay: Math.exp(-Math.exp(spec.decayLog[head]!) * softplus(a + spec.timeBias[head]!)),
          beta: sigmoid(b),
        });
        rmsNormRow(o, o, 0, spec.norm.weight, spec.norm.eps);
        const z = t * width + channels + head * valueDim;
        for (let i = 0; i < valueDim; i++) o[i]! *= projected[z + i]! * sigmoid(projected[z + i]!);
      }
    }
  }
}

/** x[I] = sigmoid(gate[I]) · x. */
export function gateElements(x: Float32Array, gate: Float32Array): void {
  for (let i = 0; i < x.length; i++) x[i]! *= sigmoid(gate[i]!);
}

function slotOf({ tails, states, layers, layer }: HostStates, slot: number, spec: HostDeltaNet) {
  const of = (all: Float32Array, size: number) => {
    const start = (slot * layers + layer) * size;
    return all.subarray(start, start + size);
  };
  return {
    tail: of(tails, spec.convWidth * spec.channels),
    state: of(states, spec.numValueHeads * spec.keyDim * spec.valueDim),
  };
}

/** out = silu of the weighted sum of a token's channels and those of the tokens before, which its own then join. */
function convolve(
  out: Float64Array,
  token: Float32Array,
  tail: Float32Array,
  position: number,
  { channels, convWidth, convolution }: HostDeltaNet,
): void {
  tail.set(token, (position % convWidth) * channels);
  out.fill(0);
  for (let w = Math.max(0, convWidth - 1 - position); w < convWidth; w++) {
    const from = ((position - convWidth + 1 + w) % convWidth) * channels;
    for (let c = 0; c < channels; c++) out[c] = out[c]! + convolution[c * convWidth + w]! * tail[from + c]!;
  }
  for (let c = 0; c < channels; c++) out[c] = out[c]! * sigmoid(out[c]!);
}

function makeUnit(x: Float64Array, scale: number): void {
  let squares = UNIT_EPSILON;
  for (const value of x) squares += value * value;
  const factor = scale / Math.sqrt(squares);
  for (let i = 0; i < x.length; i++) x[i]! *= factor;
}

/** A token's part in one value head. */
interface TokenOfHead {
  readonly q: Float64Array;
  readonly k: Float64Array;
  readonly v: Float64Array;
  readonly decay: number;
  readonly beta: number;
}

/**
 * Both products of the state are of what it was: with S' = decay · S + k · deltaᵀ, S'ᵀ·q = decay · Sᵀ·q + (k·q) · delta. Indices that only
 * count up are several times as fast as products of them.
 */
function step(o: Float32Array, state: Float32Array, { q, k, v, decay, beta }: TokenOfHead): void {
  const [keyDim, valueDim] = [k.length, v.length];
  const [delta, sums] = [new Float64Array(valueDim), new Float64Array(valueDim)];
  let kq = 0;
  for (let i = 0, at = 0; i < keyDim; i++) {
    const [ki, qi] = [k[i]!, q[i]!];
    kq += ki * qi;
    for (let j = 0; j < valueDim; j++) {
      const before = state[at++]!;
      delta[j] = delta[j]! + before * ki;
      sums[j] = sums[j]! + before * qi;
    }
  }
  for (let j = 0; j < valueDim; j++) {
    delta[j] = beta * (v[j]! - decay * delta[j]!);
    o[j] = decay * sums[j]! + kq * delta[j]!;
  }
  for (let i = 0, at = 0; i < keyDim; i++) {
    const ki = k[i]!;
    for (let j = 0; j < valueDim; j++, at++) state[at] = decay * state[at]! + ki * delta[j]!;
  }
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

function softplus(x: number): number {
  return x > 20 ? x : Math.log1p(Math.exp(x));
}
