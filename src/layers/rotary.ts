import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";

/** Rotary position embedding (Su et al. 2021) and how its frequencies are stretched for long contexts. */
export interface RopeConfig {
  /** Base of the geometric sequence of wavelengths. */
  readonly theta: number;
  /** Share of each head that turns, (0, 1]. */
  readonly partialRotaryFactor: number;
  readonly scaling: RopeScaling;
}

export type RopeScaling =
  | { readonly kind: "none" }
  | { readonly kind: "linear"; readonly factor: number }
  | {
      /**
       * NTK-aware: beyond the positions of training theta grows, so that the longest wavelength covers those of the engine, all of
       * them alike, as keys that are cached must stay valid. (transformers lets it grow with each sequence.)
       */
      readonly kind: "dynamic";
      readonly factor: number;
      readonly originalMaxPositionEmbeddings: number;
    }
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
      /** The ramp begins and ends at whole pairs. */
      readonly truncate: boolean;
      /** Multiplies cosines and sines; default 0.1 · ln(factor) + 1. */
      readonly attentionFactor: number;
    }
  | {
      /**
       * LongRoPE (Ding et al. 2024): each pair's wavelength multiplied by a factor of its own, [rotaryDim / 2], from one list up to
       * the positions of training and from another beyond them: all positions alike, by those of the engine.
       */
      readonly kind: "longrope";
      readonly shortFactors: readonly number[];
      readonly longFactors: readonly number[];
      readonly originalMaxPositionEmbeddings: number;
      /** Multiplies cosines and sines. */
      readonly attentionFactor: number;
    }
  | {
      /** The leading pairs turn as those of a whole head do, divided by `factor`; the others are pairs of the whole head that do not. */
      readonly kind: "proportional";
      readonly factor: number;
    }
  | {
      /** Each pair's wavelength multiplied by a factor of its own: what a GGUF file makes of Llama 3.1's scaling. */
      readonly kind: "factors";
      /** [rotaryDim / 2] */
      readonly factors: readonly number[];
    };

/** Number of leading dimensions of a head that are rotated; even. */
export function rotaryDim(headDim: number, rope: RopeConfig): number {
  return rope.scaling.kind === "proportional" ? headDim : turningDim(headDim, rope);
}

/** The dimensions of those that turn with the position. */
function turningDim(headDim: number, { partialRotaryFactor }: RopeConfig): number {
  return 2 * Math.floor((headDim * partialRotaryFactor) / 2);
}

/**
 * Angular frequency of each rotated pair, in radians per position: [rotaryDim / 2].
 * @param positions those that the engine may reach
 */
export function inverseFrequencies(headDim: number, rope: RopeConfig, positions: number): Float64Array {
  const { theta, scaling } = rope;
  const dim = rotaryDim(headDim, rope);
  const frequencies = (from: number) =>
    Float64Array.from({ length: dim / 2 }, (_, i) => from ** ((-2 * i) / dim));
  const base = frequencies(theta);
  switch (scaling.kind) {
    case "none":
      return base;
    case "linear":
      return base.map((frequency) => frequency / scaling.factor);
    case "dynamic": {
      const { factor, originalMaxPositionEmbeddings } = scaling;
      const stretch =
        (factor * Math.max(positions, originalMaxPositionEmbeddings)) / originalMaxPositionEmbeddings;
      return frequencies(theta * (stretch - (factor - 1)) ** (dim / (dim - 2)));
    }
    case "longrope": {
      const { shortFactors, longFactors, originalMaxPositionEmbeddings } = scaling;
      const factors = positions > originalMaxPositionEmbeddings ? longFactors : shortFactors;
      return base.map((frequency, i) => frequency / factors[i]!);
    }
    case "proportional": {
      const turning = turningDim(headDim, rope) / 2;
      return base.map((frequency, i) => (i < turning ? frequency / scaling.factor : 0));
    }
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
      const { factor, betaFast, betaSlow, originalMaxPositionEmbeddings, truncate } = scaling;
      const [floor, ceil] = truncate ? [Math.floor, Math.ceil] : [Number, Number];
      const dimensionOf = (rotations: number) =>
        (dim * Math.log(originalMaxPositionEmbeddings / (rotations * 2 * Math.PI))) / (2 * Math.log(theta));
      const low = Math.max(0, floor(dimensionOf(betaFast)));
      const high = Math.min(dim - 1, ceil(dimensionOf(betaSlow)));
      return base.map((frequency, i) => {
        const kept = 1 - clamp01((i - low) / Math.max(high - low, 0.001));
        return (1 - kept) * (frequency / factor) + kept * frequency;
      });
    }
  }
}

/** float32 [positions, rotaryDim] on the device: the cosines of each position's angles, then their sines. */
export function rotaryTable(backend: Backend, headDim: number, positions: number, rope: RopeConfig): Tensor {
  const values = Float32Array.from(inverseFrequencies(headDim, rope, positions));
  const amplitude = "attentionFactor" in rope.scaling ? rope.scaling.attentionFactor : 1;
  const table = backend.empty("float32", [positions, 2 * values.length]);
  const frequencies = backend.empty("float32", [values.length]);
  backend.upload(frequencies, values);
  backend.rotaryTable(table, frequencies, amplitude);
  frequencies.buffer.dispose();
  return table;
}

/** Queries of positions past those of training are scaled up, as Llama 4 has it; see `AttentionSpec.queryScales`. */
export interface QueryScaling {
  readonly beta: number;
  readonly originalMaxPositionEmbeddings: number;
}

/** float32 [positions] on the device: 1 + beta · ln(1 + floor(position / original)). */
export function queryScaleTable(backend: Backend, positions: number, scaling: QueryScaling): Tensor {
  const { beta, originalMaxPositionEmbeddings } = scaling;
  const table = backend.empty("float32", [positions]);
  const scale = (position: number) =>
    1 + beta * Math.log1p(Math.floor(position / originalMaxPositionEmbeddings));
  backend.upload(
    table,
    Float32Array.from({ length: positions }, (_, position) => scale(position)),
  );
  return table;
}

/** The tables by position that a layer's attention reads; see `AttentionSpec`. */
export interface PositionTables {
  readonly cosSin?: Tensor | undefined;
  readonly queryScales?: Tensor | undefined;
}

function clamp01(x: number): number {
  return Math.min(1, Math.max(0, x));
}
