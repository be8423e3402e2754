import type { AttentionSpec, HeadNormSpec, ProjectionNormSpec } from "../backend/attention-spec.ts";
import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import { lengthOf, shareOf } from "../base/shard.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput } from "./linear.ts";
import type { RmsNorm } from "./norm.ts";
import type { Parameters } from "./parameters.ts";
import type { PositionTables } from "./rotary.ts";

export interface AttentionShape extends PositionTables {
  readonly hiddenSize: number;
  /** Of the whole model. */
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** Norms of each query and each key head before the rotary embedding. */
  readonly headNorm?: { readonly query: RmsNorm; readonly key: RmsNorm };
  /** Epsilon of norms of all of a token's queries and all of its keys, before anything else is done to them. */
  readonly projectionNormEps?: number | undefined;
  /** Multiplies query·key. Default 1 / sqrt(headDim). */
  readonly scale?: number | undefined;
  /** See `AttentionSpec.softCap`. */
  readonly attentionSoftCap?: number | undefined;
  /** Heads have sinks; see `AttentionSpec.sinks`. */
  readonly attentionSinks?: boolean | undefined;
  /** Sliding window in tokens; 0 = none. */
  readonly window: number;
}

/** Grouped-query attention over the paged KV cache. Ranks divide the heads. */
export class Attention {
  readonly #qkv: Linear;
  readonly #output: Linear;
  readonly #projectionNorm: ProjectionNormSpec | undefined;
  readonly #spec: AttentionSpec;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.self_attn`. */
  constructor(parameters: Parameters, name: string, source: string, shape: AttentionShape) {
    const { hiddenSize, numHeads, numKvHeads, headDim, headNorm, projectionNormEps, window } = shape;
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
    const perHead = (
      part: string,
      from: string,
      units: number,
      dimensions: number,
      options: PerHeadOptions,
    ) => {
      const { start, end } = shareOf(units, parameters.shard);
      return parameters.get({
        name: `${name}.${part}`,
        shape: [(end - start) * dimensions],
        sources: [
          {
            ...{ name: `${source}.${from}`, shape: [units * dimensions] },
            slice: { dim: 0, start: start * dimensions, end: end * dimensions },
          },
        ],
        ...options,
      });
    };
    if (projectionNormEps !== undefined)
      this.#projectionNorm = {
        query: perHead("queryNorm.weight", "q_norm.weight", numHeads, headDim, { dummy: "ones" }),
        key: perHead("keyNorm.weight", "k_norm.weight", numKvHeads, headDim, { dummy: "ones" }),
        eps: projectionNormEps,
      };
    const held = (units: number) => lengthOf(shareOf(units, parameters.shard));
    this.#spec = {
      ...{ numHeads: held(numHeads), numKvHeads: held(numKvHeads), headDim, window },
      ...{ cosSin: shape.cosSin, queryScales: shape.queryScales },
      ...{ scale: shape.scale ?? 1 / Math.sqrt(headDim), softCap: shape.attentionSoftCap },
      headNorm: headNorm && normSpec(headNorm.query, headNorm.key),
      sinks: shape.attentionSinks
        ? perHead("sinks", "sinks", numHeads, 1, { dtype: "float32", dummy: "normal" })
        : undefined,
    };
  }

  /** residual[T, H] += attention(x[T, H]); stores the tokens' keys and values in `cache`. */
  addTo(context: ForwardContext, residual: Tensor, x: LinearInput, cache: LayerCache): void {
    const { backend, workspace, batch } = context;
    const { numHeads, headDim } = this.#spec;
    const tokens = residual.dim(0);
    const qkv = workspace.tensor("qkv", residual.dtype, [tokens, this.#qkv.outputSize]);
    this.#qkv.forward(context, qkv, x);
    if (this.#projectionNorm !== undefined) backend.normProjections(qkv, this.#projectionNorm);
    const attended = workspace.tensor("attended", residual.dtype, [tokens, numHeads * headDim]);
    backend.attend(attended, qkv, cache, batch, this.#spec);
    this.#output.addTo(context, residual, attended);
  }
}

/** Of a parameter that each head has its own part of. */
type PerHeadOptions = Pick<ParameterSpec, "dtype" | "dummy">;

function normSpec({ weight: query, eps }: RmsNorm, { weight: key }: RmsNorm): HeadNormSpec {
  return { query, key, eps };
}
