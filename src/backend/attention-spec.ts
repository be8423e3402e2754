import type { Tensor } from "./tensor.ts";

/** RMSNorm over the dimensions of a head, with weights [D] of its own for queries and for keys. */
export interface HeadNormSpec {
  readonly query: Tensor;
  /** Undefined where the layer has queries alone. */
  readonly key?: Tensor | undefined;
  readonly eps: number;
  /** Values are normalised, too, without a weight. Default false. */
  readonly normsValues?: boolean | undefined;
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
  /** See `HeadNormSpec.normsValues`. */
  readonly normsValues: boolean;
  /** See `AttentionSpec.readsOnly`. */
  readonly readsOnly: boolean;
}

/** The key/value heads of a layer. */
export interface KvHeads {
  readonly numKvHeads: number;
  /** D, of query heads, too. */
  readonly headDim: number;
}

/** What a layer's attention computes. */
export interface AttentionSpec extends KvHeads {
  readonly numHeads: number;
  /** RMSNorm of each query head and each key head before the rotation, and of each value head if it says so. */
  readonly headNorm?: HeadNormSpec | undefined;
  /**
   * The projections are queries alone, [T, NQ·D]: nothing is stored, and keys and values are those of a cache in which a layer before
   * has stored this step's tokens. Default false.
   */
  readonly readsOnly?: boolean | undefined;
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
export function attentionFormOf(spec: AttentionSpec): AttentionForm {
  const { cosSin, queryScales, softCap, sinks, headNorm, readsOnly = false } = spec;
  return {
    rotaryDim: cosSin?.dim(1) ?? 0,
    hasQueryScales: queryScales !== undefined,
    hasSoftCap: softCap !== undefined,
    hasSinks: sinks !== undefined,
    normsValues: headNorm?.normsValues ?? false,
    readsOnly,
  };
}

/** The heads of a token's projections: queries, keys and values, or queries alone. */
export function projectedHeads({
  numHeads,
  numKvHeads,
  readsOnly,
}: Pick<AttentionSpec, "numHeads" | "numKvHeads" | "readsOnly">): number {
  return readsOnly ? numHeads : numHeads + 2 * numKvHeads;
}
