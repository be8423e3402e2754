import type { AttentionSpec, HeadNormSpec, LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { lengthOf, shareOf } from "../base/shard.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput } from "./linear.ts";
import type { RmsNorm } from "./norm.ts";
import type { Parameters } from "./parameters.ts";

export interface AttentionShape {
  readonly hiddenSize: number;
  /** Of the whole model. */
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** Norms of each query and each key head before the rotary embedding. */
  readonly headNorm?: { readonly query: RmsNorm; readonly key: RmsNorm };
  /** See `AttentionSpec.cosSin`. */
  readonly cosSin: Tensor;
  /** Sliding window in tokens; 0 = none. */
  readonly window: number;
}

/** Grouped-query attention over the paged KV cache. Ranks divide the heads. */
export class Attention {
  readonly #qkv: Linear;
  readonly #output: Linear;
  readonly #spec: AttentionSpec;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.self_attn`. */
  constructor(parameters: Parameters, name: string, source: string, shape: AttentionShape) {
    const { hiddenSize, numHeads, numKvHeads, headDim, headNorm, cosSin, window } = shape;
    const heads = (part: string, units: number) => ({
      source: `${source}.${part}`,
      units,
      unitSize: headDim,
    });
    this.#qkv = new Linear(parameters, `${name}.qkv`, {
      inputSize: hiddenSize,
      projections: [heads("q_proj", numHeads), heads("k_proj", numKvHeads), heads("v_proj", numKvHeads)],
      ...{ split: "columns", bias: shape.qkvBias },
    });
    this.#output = new Linear(parameters, `${name}.output`, {
      inputSize: numHeads * headDim,
      projections: [{ source: `${source}.o_proj`, units: hiddenSize }],
      ...{ split: "rows", bias: shape.outputBias },
    });
    const held = (units: number) => lengthOf(shareOf(units, parameters.shard));
    this.#spec = {
      ...{ numHeads: held(numHeads), numKvHeads: held(numKvHeads), headDim, cosSin, window },
      scale: 1 / Math.sqrt(headDim),
      headNorm: headNorm && normSpec(headNorm.query, headNorm.key),
    };
  }

  /** residual[T, H] += attention(x[T, H]); stores the tokens' keys and values in `cache`. */
  addTo(context: ForwardContext, residual: Tensor, x: LinearInput, cache: LayerCache): void {
    const { backend, workspace, batch } = context;
    const { numHeads, headDim } = this.#spec;
    const tokens = residual.dim(0);
    const qkv = workspace.tensor("qkv", residual.dtype, [tokens, this.#qkv.outputSize]);
    this.#qkv.forward(context, qkv, x);
    const attended = workspace.tensor("attended", residual.dtype, [tokens, numHeads * headDim]);
    backend.attend(attended, qkv, cache, batch, this.#spec);
    this.#output.addTo(context, residual, attended);
  }
}

function normSpec({ weight: query, eps }: RmsNorm, { weight: key }: RmsNorm): HeadNormSpec {
  return { query, key, eps };
}
