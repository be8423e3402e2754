import type { Tensor } from "./tensor.ts";

/** RMSNorm over the dimensions of a head, with weights [D] of its own for queries and for keys. */
export interface HeadNormSpec {
  readonly query: Tensor;
  readonly key: Tensor;
  readonly eps: number;
}

/** RMSNorm over all of a token's queries and all of its keys, with this rank's part of the weights, [NQ·D] and [NKV·D]. */
export interface ProjectionNormSpec {
  readonly query: Tensor;
  readonly key: Tensor;
  readonly eps: number;
}

/** The properties of an `AttentionSpec` that kernels are specialised by, besides its heads. */
export interface AttentionForm {
  /** Leading dimensions of a head that are rotated. */
  readonly rotaryDim: number;
  readonly hasQueryScales: boolean;
  readonly hasSoftCap: boolean;
  readonly hasSinks: boolean;
}

/** What a layer's attention computes. */
export interface AttentionSpec {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** RMSNorm of each query head and each key head before the rotation. */
  readonly headNorm?: HeadNormSpec | undefined;
  /**
   * float32 [positions, rotaryDim]: cosines of half the dimensions, then sines; scaling is already applied. The first
   * rotaryDim dimensions of a head are rotated in half-split ("NeoX") order: (x₁, x₂) → (x₁cos − x₂sin, x₂cos + x₁sin).
   * Undefined: none are.
   */
  readonly cosSin?: Tensor | undefined;
  /** float32 [positions]: multiplies the queries of each position, once they are rotated. */
  readonly queryScales?: Tensor | undefined;
  /** Multiplies query·key, usually 1 / sqrt(headDim). */
  readonly scale: number;
  /** A score s, scaled, becomes softCap · tanh(s / softCap), positive. Undefined: it stays as it is. */
  readonly softCap?: number | undefined;
  /**
   * float32 [NQ]: a logit of each query head that the softmax's sum has besides the scores: attention that goes to no token.
   */
  readonly sinks?: Tensor | undefined;
  /**
   * Sliding window in tokens, the query's own included; 0 = none. Entries of block tables are not read for tokens that lie
   * `ATTENTION_TILE` or more before it.
   */
  readonly window: number;
}

/** The most tokens that backends read together: from a multiple of it on, or of a part of it. */
export const ATTENTION_TILE = 128;

/** @returns the form of a spec */
export function attentionFormOf({ cosSin, queryScales, softCap, sinks }: AttentionSpec): AttentionForm {
  return {
    rotaryDim: cosSin?.dim(1) ?? 0,
    hasQueryScales: queryScales !== undefined,
    hasSoftCap: softCap !== undefined,
    hasSinks: sinks !== undefined,
  };
}
