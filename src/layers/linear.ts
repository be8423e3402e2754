import type { LinearActivation, RmsNormSpec } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Weight } from "../backend/weight.ts";
import { lengthOf, type Shard, type Span, shareOf } from "../base/shard.ts";
import type { ForwardContext } from "./forward-context.ts";
import type { Parameters } from "./parameters.ts";
import type { MatrixPart } from "./weight-scheme.ts";

/**
 * The division of y[N] = weight[N, K] · x[K] among ranks: by `columns`, each computes some of the outputs; by `rows`, each has some
 * of the inputs and its outputs are terms of a sum; `none`, each computes all.
 */
export type Split = "columns" | "rows" | "none";

export interface LinearShape {
  /** K of the whole model. */
  readonly inputSize: number;
  /** Projections of one input, merged by stacking their rows. */
  readonly projections: readonly Projection[];
  readonly split: Split;
  readonly bias: boolean;
  /** The weight is never quantised while it is loaded. Default false. */
  readonly exact?: boolean;
}

/** Outputs of a linear that the checkpoint stores by themselves, of the whole model. */
export interface Projection {
  /** The checkpoint's name without `.weight`, e.g. `model.layers.0.self_attn.q_proj`. */
  readonly source: string;
  /** Groups of outputs that ranks do not divide further, such as attention heads. */
  readonly units: number;
  /** Outputs of a unit. Default 1. */
  readonly unitSize?: number;
  /** The place of the outputs in a tensor of several projections. Default: the tensor has these alone. */
  readonly within?: RowsWithin;
}

/** Rows of a larger tensor: unit i begins at row start + i · stride. */
export interface RowsWithin {
  /** Of the tensor. */
  readonly rows: number;
  readonly start: number;
  readonly stride: number;
}

/** x[T, K], and the norm that comes before the product. */
export interface LinearInput {
  readonly x: Tensor;
  readonly norm?: RmsNormSpec;
}

/** y[T, N] = x[T, K] · weight[N, K]ᵀ + bias[N], with N and K those of this rank. */
export class Linear {
  readonly weight: Weight;
  readonly #bias: Tensor | undefined;
  readonly #split: Split;

  constructor(parameters: Parameters, name: string, shape: LinearShape) {
    const { inputSize, projections, split, bias, exact = false } = shape;
    const { shard } = parameters;
    const parts = projections.flatMap((projection) => {
      const { units } = projection;
      return partsOf(projection, split === "columns" ? shareOf(units, shard) : { start: 0, end: units });
    });
    const columnSpan = split === "rows" ? shareOf(inputSize, shard) : { start: 0, end: inputSize };
    this.weight = parameters.weight({ name, parts, columns: inputSize, columnSpan, exact });
    this.#split = split;
    if (!bias) return;
    const loaded = parameters.get({
      name: `${name}.bias`,
      shape: [this.outputSize],
      sources: parts.map(({ source, rows, rowSpan }) => ({
        ...{ name: `${source}.bias`, shape: [rows] },
        ...(lengthOf(rowSpan) < rows && { slice: { dim: 0, ...rowSpan } as const }),
      })),
      dummy: "zeros",
    });
    if (isFirstTerm(split, shard)) this.#bias = loaded;
  }

  /** N of this rank. */
  get outputSize(): number {
    return this.weight.shape[0];
  }

  /** out[T, N] = y, or act(y); [T, N/2] when it is gated. */
  forward(
    { backend }: ForwardContext,
    out: Tensor,
    { x, norm }: LinearInput,
    activation?: LinearActivation,
  ): void {
    backend.linear(out, x, this.weight, { norm, bias: this.#bias, activation });
  }

  /** out[T, N] = y; split by rows, the sum of all ranks' y. */
  sumTo(context: ForwardContext, out: Tensor, x: Tensor): void {
    const { backend } = context;
    if (this.#split !== "rows" || backend.allReduceAdd === undefined) {
      backend.linear(out, x, this.weight, { bias: this.#bias });
      return;
    }
    backend.fill(out, 0);
    this.#addSum(context, out, x);
  }

  /** residual[T, N] += y; split by rows, the sum of all ranks' y. */
  addTo(context: ForwardContext, residual: Tensor, x: Tensor): void {
    const { backend } = context;
    if (this.#split !== "rows" || backend.allReduceAdd === undefined) {
      backend.linear(residual, x, this.weight, { bias: this.#bias, addTo: residual });
      return;
    }
    this.#addSum(context, residual, x);
  }

  /** residual[T, N] += the sum of all ranks' y. */
  #addSum({ backend, workspace }: ForwardContext, residual: Tensor, x: Tensor): void {
    const branch = workspace.tensor("branch", residual.dtype, residual.shape);
    backend.allReduceAdd!(residual, branch, ({ start, end }) => {
      backend.linear(branch.rows(start, end), x.rows(start, end), this.weight, { bias: this.#bias });
    });
  }
}

/** The rows of some units, neighbours in the checkpoint together. */
function partsOf({ source, units, unitSize = 1, within }: Projection, { start, end }: Span): MatrixPart[] {
  const { rows, start: first, stride } = within ?? { rows: units * unitSize, start: 0, stride: unitSize };
  const part = (unit: number, count: number) => {
    const row = first + unit * stride;
    return { source, rows, rowSpan: { start: row, end: row + count * unitSize } };
  };
  if (stride === unitSize) return [part(start, end - start)];
  return Array.from({ length: end - start }, (_, i) => part(start + i, 1));
}

/** Of a sum over ranks, one term alone has the bias. */
function isFirstTerm(split: Split, { rank }: Shard): boolean {
  return split !== "rows" || rank === 0;
}
