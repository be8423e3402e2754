import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";

/** Rotary position embedding (Su et al. 2021) and how its frequencies are stretched for long contexts. */
export interface RopeConfig {
  /** Base of the geometric sequence of wavelengths. */
  readonly theta: number;
  /** Share of each head that is rotated, (0, 1]. */
  readonly partialRotaryFactor: number;
  readonly scaling: RopeScaling;
}

export type RopeScaling =
  | { readonly kind: "none" }
  | { readonly kind: "linear"; readonly factor: number }
  | {
      /** Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between. */
      readonly kind: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    }
  | {
      /** YaRN (Peng et al. 2023): a ramp by the number of rotations in the original context, plus a temperature. */
      readonly kind: "yarn";
      readonly factor: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly originalMaxPositionEmbeddings: number;
      /** Multiplies cosines and sines; default 0.1 · ln(factor) + 1. */
      readonly attentionFactor: number;
    }
  | {
      /** Each pair's wavelength multiplied by a factor of its own: what a GGUF file makes of Llama 3.1's scaling. */
      readonly kind: "factors";
      /** [rotaryDim / 2] */
      readonly factors: readonly number[];
    };

/** Number of leading dimensions of a head that are rotated; even. */
export function rotaryDim(headDim: number, rope: RopeConfig): number {
  return 2 * Math.floor((headDim * rope.partialRotaryFactor) / 2);
}

/** Angular frequency of each rotated pair, in radians per position: [rotaryDim / 2]. */
export function inverseFrequencies(headDim: number, rope: RopeConfig): Float64Array {
  const { theta, scaling } = rope;
  const dim = rotaryDim(headDim, rope);
  const base = Float64Array.from({ length: dim / 2 }, (_, i) => theta ** ((-2 * i) / dim));
  switch (scaling.kind) {
    case "none":
      return base;
    case "linear":
      return base.map((frequency) => frequency / scaling.factor);
    case "factors":
      return base.map((frequency, i) => frequency / scaling.factors[i]!);
    case "llama3": {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = scaling;
      return base.map((frequency) => {
        const rotations = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
        const kept = clamp01((rotations - lowFreqFactor) / (highFreqFactor - lowFreqFactor));
        return (1 - kept) * (frequency / factor) + kept * frequency;
      });
    }
    case "yarn": {
      const { factor, betaFast, betaSlow, originalMaxPositionEmbeddings } = scaling;
      const dimensionOf = (rotations: number) =>
        (dim * Math.log(originalMaxPositionEmbeddings / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
      const low = Math.max(0, Math.floor(dimensionOf(betaFast)));
      const high = Math.min(dim - 1, Math.ceil(dimensionOf(betaSlow)));
      return base.map((frequency, i) => {
        const kept = 1 - clamp01((i - low) / Math.max(high - low, 0.001));
        return (1 - kept) * (frequency / factor) + kept * frequency;
      });
    }
  }
}

/** float32 [positions, rotaryDim] on the device: the cosines of each position's angles, then their sines. */
export function rotaryTable(backend: Backend, headDim: number, positions: number, rope: RopeConfig): Tensor {
  const values = Float32Array.from(inverseFrequencies(headDim, rope));
  const amplitude = rope.scaling.kind === "yarn" ? rope.scaling.attentionFactor : 1;
  const table = backend.empty("float32", [positions, 2 * values.length]);
  const frequencies = backend.empty("float32", [values.length]);
  backend.upload(frequencies, values);
  backend.rotaryTable(table, frequencies, amplitude);
  frequencies.buffer.dispose();
  return table;
}

function clamp01(x: number): number {
  return Math.min(1, Math.max(0, x));
}
