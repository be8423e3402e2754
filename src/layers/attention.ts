import type { AttentionSpec, LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import type { ForwardContext, Parameters } from "./layer.ts";
import { Linear } from "./linear.ts";
import { RmsNorm } from "./norm.ts";

export interface AttentionShape {
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** RMSNorm of each query and key head before the rotary embedding. */
  readonly queryKeyNorm: boolean;
  readonly normEps: number;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** Sliding window in tokens; 0 = none. */
  readonly window: number;
}

/** Grouped-query attention over the paged KV cache. */
export class Attention {
  readonly #qkv: Linear;
  readonly #output: Linear;
  readonly #queryNorm: RmsNorm | undefined;
  readonly #keyNorm: RmsNorm | undefined;
  readonly #spec: AttentionSpec;

  constructor(
    parameters: Parameters,
    name: string,
    private readonly shape: AttentionShape,
    private readonly cosSin: Tensor,
  ) {
    this.#qkv = new Linear(parameters, `${name}.qkv`);
    this.#output = new Linear(parameters, `${name}.output`);
    if (shape.queryKeyNorm) {
      this.#queryNorm = new RmsNorm(parameters, `${name}.queryNorm`, shape.normEps);
      this.#keyNorm = new RmsNorm(parameters, `${name}.keyNorm`, shape.normEps);
    }
    const { numHeads, numKvHeads, headDim, window } = shape;
    this.#spec = { numHeads, numKvHeads, headDim, scale: 1 / Math.sqrt(headDim), window };
  }

  /** out[T, H] from x[T, H]; stores the tokens' keys and values in `cache`. `out` may be `x`. */
  forward({ backend, workspace, batch }: ForwardContext, out: Tensor, x: Tensor, cache: LayerCache): void {
    const { numHeads, numKvHeads, headDim, normEps } = this.shape;
    const qkv = workspace.tensor("qkv", x.dtype, [x.dim(0), this.#qkv.outputSize]);
    this.#qkv.forward(backend, qkv, x);
    backend.ropeAndStoreKv(qkv, cache, batch, {
      ...{ numHeads, numKvHeads, headDim, cosSin: this.cosSin, eps: normEps },
      ...(this.#queryNorm && { queryNorm: this.#queryNorm.weight }),
      ...(this.#keyNorm && { keyNorm: this.#keyNorm.weight }),
    });
    const attended = workspace.tensor("attended", x.dtype, [x.dim(0), numHeads * headDim]);
    backend.attention(attended, qkv, cache, batch, this.#spec);
    this.#output.forward(backend, out, attended);
  }

  static parameters(name: string, source: string, shape: AttentionShape): ParameterSpec[] {
    const { hiddenSize, numHeads, numKvHeads, headDim } = shape;
    const projections = [
      [`${source}.q_proj`, numHeads * headDim],
      [`${source}.k_proj`, numKvHeads * headDim],
      [`${source}.v_proj`, numKvHeads * headDim],
    ] as const;
    const norms = shape.queryKeyNorm
      ? [
          ...RmsNorm.parameters(`${name}.queryNorm`, `${source}.q_norm`, headDim),
          ...RmsNorm.parameters(`${name}.keyNorm`, `${source}.k_norm`, headDim),
        ]
      : [];
    return [
      ...Linear.parameters(`${name}.qkv`, hiddenSize, projections, shape.qkvBias),
      ...norms,
      ...Linear.parameters(
        `${name}.output`,
        numHeads * headDim,
        [[`${source}.o_proj`, hiddenSize]],
        shape.outputBias,
      ),
    ];
  }
}
