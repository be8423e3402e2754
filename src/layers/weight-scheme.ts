import type { Tensor } from "../backend/tensor.ts";
import { denseWeight, type Weight } from "../backend/weight.ts";
import type { ParameterSource, ParameterSpec } from "../base/parameter-spec.ts";
import { lengthOf, type Span } from "../base/shard.ts";

/** Octavo's name of the last product's matrix: schemes that choose what to quantise leave it as it is. */
export const LM_HEAD = "lmHead";

/** A matrix [N, K] that a rank multiplies by, made of the checkpoint's matrices, their rows stacked. */
export interface MatrixSpec {
  /** Octavo's name, e.g. `layers.0.attention.qkv`. */
  readonly name: string;
  readonly parts: readonly MatrixPart[];
  /** K in the checkpoint, and the part of it that this rank holds. */
  readonly columns: number;
  readonly columnSpan: Span;
  /** Stays as the checkpoint has it, where other matrices are quantised while they are loaded: a router's. Default false. */
  readonly exact?: boolean;
  /** Of experts, which the backend takes as they were loaded: `Backend.prepareWeight` is for `linear`. Default false. */
  readonly experts?: boolean;
}

/** One of the checkpoint's matrices. */
export interface MatrixPart {
  /** The checkpoint's name, e.g. `model.layers.0.self_attn.q_proj`; schemes append what they look for. */
  readonly source: string;
  /** Its rows in the checkpoint, and those that this rank holds. Of rows and columns, one at most is cut. */
  readonly rows: number;
  readonly rowSpan: Span;
}

/** A matrix [N, K] of the checkpoint, by its name without `.weight`. */
export interface MatrixName {
  readonly source: string;
  readonly rows: number;
  readonly columns: number;
}

/**
 * A way to store the matrices that layers multiply by: the parameters that a matrix consists of, and how they make a
 * `Weight`.
 */
export interface WeightScheme {
  /** Tensors of the checkpoint that belong to weights and are no parameters. Known when all weights were asked for. */
  readonly ignored?: readonly RegExp[];
  /** True if products by an embedding table [N, K] are to be by the codes that the checkpoint has it in, beside the table. */
  hasHeadCodes?(table: MatrixName): boolean;
  /** @param get the parameter that a spec describes; called while specs are gathered, and again when they are loaded. */
  weight(matrix: MatrixSpec, get: (spec: ParameterSpec) => Tensor): Weight;
}

/** Plain float matrices, named `….weight`. */
export const denseScheme: WeightScheme = {
  weight({ name, parts, columns, columnSpan }, get) {
    const rows = parts.reduce((sum, { rowSpan }) => sum + lengthOf(rowSpan), 0);
    const sources = parts.map((part): ParameterSource => {
      const source = { name: `${part.source}.weight`, shape: [part.rows, columns] };
      if (lengthOf(columnSpan) < columns) return { ...source, slice: { dim: 1, ...columnSpan } };
      if (lengthOf(part.rowSpan) < part.rows) return { ...source, slice: { dim: 0, ...part.rowSpan } };
      return source;
    });
    const shape = [rows, lengthOf(columnSpan)];
    return denseWeight(get({ name: `${name}.weight`, shape, isMatrix: true, sources, dummy: "normal" }));
  },
};
