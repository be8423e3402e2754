import type { DType } from "./dtype.ts";

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
  /** The checkpoint's tensors that make up this parameter, stacked along dimension 0 in this order. */
  readonly sources: readonly ParameterSource[];
  /** The values that `loadFormat: "dummy"` fills it with. */
  readonly dummy: "normal" | "ones" | "zeros";
}

/** A tensor of the checkpoint, or a part of one, that a parameter is made of. */
export interface ParameterSource {
  /** The checkpoint's name, e.g. `model.layers.0.self_attn.q_proj.weight`. */
  readonly name: string;
  /** The shape in the checkpoint, before `slice`. */
  readonly shape: readonly number[];
  /** The part that this rank holds: `[start, end)` along `dim`. The whole tensor when left out. */
  readonly slice?: { readonly dim: 0 | 1; readonly start: number; readonly end: number };
}
