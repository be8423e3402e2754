import type { DType } from "./dtype.ts";
import type { Reading } from "./reading.ts";

/**
 * One parameter of a model as data: the model states it, the loader fills it from the checkpoint. Merged weights
 * (query, key and value in one matrix; gate and up in one) are several sources stacked along dimension 0.
 */
export interface ParameterSpec {
  /** Octavo's name, e.g. `layers.0.attention.qkv.weight`. */
  readonly name: string;
  /** The shape after stacking and sharding. */
  readonly shape: readonly number[];
  /** Default: that of activations. */
  readonly dtype?: DType;
  /** A matrix of floats, or a table, which may stay in the checkpoint's dtype on a backend that takes it so. */
  readonly isMatrix?: true;
  /** The checkpoint's tensors that make up this parameter, stacked along dimension 0 in this order. */
  readonly sources: readonly ParameterSource[];
  /**
   * What `loadFormat: "dummy"` fills it with: a number, or random values of mean 0 and standard deviation 0.02, of float8 50 times as
   * large; of integers, random bits.
   */
  readonly dummy: "normal" | "ones" | "zeros" | number;
}

/** A tensor of the checkpoint, or a part of one, that a parameter is made of. */
export interface ParameterSource {
  /** The checkpoint's name, e.g. `model.layers.0.self_attn.q_proj.weight`. */
  readonly name: string;
  /** The shape in the checkpoint, before `slice`. */
  readonly shape: readonly number[];
  /** How the tensor is read. Default: floats, in order, converted to the parameter's dtype. */
  readonly reading?: Reading;
  /** The part that this rank holds, where there is no `reading`: `[start, end)` along `dim`. The whole tensor when left out. */
  readonly slice?: { readonly dim: 0 | 1; readonly start: number; readonly end: number };
  /** Applied to each value where there is no `reading`, in float32; what comes out is rounded once. */
  readonly affine?: Affine;
}

/** x becomes x · scale + offset. */
export interface Affine {
  readonly scale: number;
  readonly offset: number;
}
