import type { AttentionSpec, HeadNormSpec, ProjectionNormSpec } from "../backend/attention-spec.ts";
import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { invariant } from "../base/errors.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import { lengthOf, shareOf } from "../base/shard.ts";
import { batchFor, type ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput, type Projection } from "./linear.ts";
import type { RmsNorm } from "./norm.ts";
import type { Parameters } from "./parameters.ts";
import type { PositionTables } from "./rotary.ts";

export interface AttentionShape extends PositionTables {
  readonly hiddenSize: number;
  /** Of the whole model. */
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  /** The tensor that has the rows of query, key and value, and the output's name. Default: `q_proj` and so on, and `o_proj`. */
  readonly fused?: FusedNames;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** Norms of each query and each key head before the rotary embedding. */
  readonly headNorm?: HeadNorms;
  /** Epsilon of norms of all of a token's queries and all of its keys, before anything else is done to them. */
  readonly projectionNormEps?: number | undefined;
  /** Multiplies query·key. Default 1 / sqrt(headDim). */
  readonly attentionScale?: number | undefined;
  /** See `AttentionSpec.softCap`. */
  readonly attentionSoftCap?: number | undefined;
  /** Heads have sinks; see `AttentionSpec.sinks`. */
  readonly attentionSinks?: boolean | undefined;
  /** Outputs are multiplied by sigmoid(gate · x); rows of `q_proj` are each head's queries and then its gate. Default false. */
  readonly outputGate?: boolean | undefined;
  /** Sliding window in tokens; 0 = none. */
  readonly window: number;
  /** Values are what `k_proj` gives, as it is before keys are normalised and rotated. Default false. */
  readonly keysAreValues?: boolean | undefined;
  /** See `AttentionSpec.readsOnly`: there is no `k_proj` and no `v_proj`. Default false. */
  readonly readsOnly?: boolean | undefined;
}

export interface HeadNorms {
  readonly query: RmsNorm;
  /** Undefined where there are no keys. */
  readonly key?: RmsNorm | undefined;
  /** See `HeadNormSpec.normsValues`. */
  readonly normsValues?: boolean;
}

/** Names in a checkpoint that has query, key and value in one tensor. */
export interface FusedNames {
  readonly qkv: string;
  readonly output: string;
  /** Its rows: all queries, all keys, all values; or those of each head together. */
  readonly order: "stacked" | "by head";
}

/** Grouped-query attention over the paged KV cache. Ranks divide the heads. */
export class Attention {
  readonly #qkv: Linear;
  readonly #gate: Linear | undefined;
  readonly #output: Linear;
  readonly #projectionNorm: ProjectionNormSpec | undefined;
  readonly #spec: AttentionSpec;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.self_attn`. */
  constructor(parameters: Parameters, name: string, source: string, shape: AttentionShape) {
    const { hiddenSize, numHeads, numKvHeads, headDim, headNorm, projectionNormEps, window } = shape;
    this.#qkv = new Linear(parameters, `${name}.qkv`, {
      inputSize: hiddenSize,
      projections: qkvProjections(source, shape),
      ...{ split: "columns", bias: shape.qkvBias },
    });
    if (shape.outputGate)
      this.#gate = new Linear(parameters, `${name}.gate`, {
        inputSize: hiddenSize,
        projections: [gatedQueries(source, shape, headDim)],
        ...{ split: "columns", bias: shape.qkvBias },
      });
    this.#output = new Linear(parameters, `${name}.output`, {
      inputSize: numHeads * headDim,
      projections: [{ source: `${source}.${shape.fused?.output ?? "o_proj"}`, units: hiddenSize }],
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
      ...{ scale: shape.attentionScale ?? 1 / Math.sqrt(headDim), softCap: shape.attentionSoftCap },
      headNorm: headNorm && normSpec(headNorm),
      readsOnly: shape.readsOnly,
      sinks: shape.attentionSinks
        ? perHead("sinks", "sinks", numHeads, 1, { dtype: "float32", dummy: "normal" })
        : undefined,
    };
  }

  /** residual[T, H] += attention(x[T, H]); stores the tokens' keys and values in `cache`, unless it only reads that. */
  addTo(context: ForwardContext, residual: Tensor, x: LinearInput, cache: LayerCache): void {
    this.#output.addTo(context, residual, this.#attend(context, x, cache));
  }

  /** attention(x[T, H]), [T, H] in memory of the workspace; does with `cache` as `addTo`. */
  forward(context: ForwardContext, x: LinearInput, cache: LayerCache): Tensor {
    const out = context.workspace.tensor("sublayer", x.x.dtype, x.x.shape);
    this.#output.sumTo(context, out, this.#attend(context, x, cache));
    return out;
  }

  #attend(context: ForwardContext, x: LinearInput, cache: LayerCache): Tensor {
    const { backend, workspace } = context;
    const { numHeads, headDim } = this.#spec;
    const [tokens, { dtype }] = [x.x.dim(0), x.x];
    const qkv = workspace.tensor("qkv", dtype, [tokens, this.#qkv.outputSize]);
    this.#qkv.forward(context, qkv, x);
    if (this.#projectionNorm !== undefined) backend.normProjections(qkv, this.#projectionNorm);
    const attended = workspace.tensor("attended", dtype, [tokens, numHeads * headDim]);
    backend.attend(attended, qkv, cache, batchFor(context, cache), this.#spec);
    if (this.#gate !== undefined) {
      const gate = workspace.tensor("attentionGate", dtype, attended.shape);
      this.#gate.forward(context, gate, x);
      backend.gateElements(attended, gate);
    }
    return attended;
  }
}

/** Rows of `q_proj` where each head has as many of a gate after those of its queries; from row `start` of each head on. */
function gatedQueries(source: string, { numHeads, headDim }: AttentionShape, start: number): Projection {
  const within = { rows: 2 * numHeads * headDim, start, stride: 2 * headDim };
  return { source: `${source}.q_proj`, units: numHeads, unitSize: headDim, within };
}

function qkvProjections(source: string, shape: AttentionShape): Projection[] {
  const { numHeads, numKvHeads, headDim, fused, outputGate, keysAreValues, readsOnly } = shape;
  const counts = [numHeads, numKvHeads, numKvHeads];
  const heads = (part: string, units: number) => ({ source: `${source}.${part}`, units, unitSize: headDim });
  if (outputGate)
    return [gatedQueries(source, shape, 0), ...["k_proj", "v_proj"].map((part) => heads(part, numKvHeads))];
  if (fused === undefined) {
    const parts = ["q_proj", "k_proj", keysAreValues ? "k_proj" : "v_proj"].slice(0, readsOnly ? 1 : 3);
    return parts.map((part, i) => heads(part, counts[i]!));
  }
  const rows = (numHeads + 2 * numKvHeads) * headDim;
  const isByHead = fused.order === "by head";
  invariant(!isByHead || numHeads === numKvHeads, "rows by head have a key and a value each");
  return counts.map((units, i) => {
    const before = isByHead ? i : counts.slice(0, i).reduce((sum, count) => sum + count, 0);
    const within = { rows, start: before * headDim, stride: (isByHead ? 3 : 1) * headDim };
    return { ...heads(fused.qkv, units), within };
  });
}

/** Of a parameter that each head has its own part of. */
type PerHeadOptions = Pick<ParameterSpec, "dtype" | "dummy">;

function normSpec({ query, key, normsValues }: HeadNorms): HeadNormSpec {
  return { query: query.weight, key: key?.weight, eps: query.eps, normsValues };
}
