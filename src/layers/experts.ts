import type { ExpertActivation, ExpertSpec, ExpertWeights } from "../backend/experts.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import { lengthOf, type Shard, type Span, shareOf } from "../base/shard.ts";
import type { FeedForward } from "./feed-forward.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput } from "./linear.ts";
import type { Parameters } from "./parameters.ts";
import type { MatrixPart } from "./weight-scheme.ts";

export interface ExpertsShape {
  readonly hiddenSize: number;
  /** Experts of the layer, and of a token. */
  readonly count: number;
  readonly perToken: number;
  /** Of one expert, of the whole model. */
  readonly intermediateSize: number;
  /** See `ExpertSpec.softmaxOver`. */
  readonly softmaxOver: ExpertSpec["softmaxOver"];
  readonly activation: ExpertActivation;
  /** The checkpoint's names. Default those of Qwen and most others. */
  readonly names?: Partial<ExpertNames>;
  /** The checkpoint's name in the block of what multiplies weights of experts; see `ExpertWeights.expertScales`. Default: there is nothing. */
  readonly scales?: string | undefined;
  /** The router and all projections have biases. Default false. */
  readonly bias?: boolean;
}

/** Names without `.weight`: of the router in its block, and of projections after `experts.N.`. */
export interface ExpertNames {
  readonly router: string;
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

const NAMES: ExpertNames = { router: "gate", gate: "gate_proj", up: "up_proj", down: "down_proj" };

/**
 * A mixture of experts: each token goes through the few of the experts whose router logits are greatest. Ranks divide the intermediate
 * size of every expert, and all choose the same experts.
 */
export class Experts implements FeedForward {
  readonly #router: Linear;
  readonly #weights: ExpertWeights;
  readonly #spec: ExpertSpec;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.mlp`. */
  constructor(parameters: Parameters, name: string, source: string, shape: ExpertsShape) {
    const { hiddenSize, count, intermediateSize, bias = false } = shape;
    const names = { ...NAMES, ...shape.names };
    this.#router = new Linear(parameters, `${name}.router`, {
      inputSize: hiddenSize,
      projections: [{ source: `${source}.${names.router}`, units: count }],
      ...{ split: "none", bias: false, exact: true },
    });
    const whole = { start: 0, end: hiddenSize };
    const share = shareOf(intermediateSize, parameters.shard);
    const matrices = (parts: readonly string[], rows: number, rowSpan: Span): MatrixPart[] =>
      Array.from({ length: count }, (_, expert) => `${source}.experts.${expert}`).flatMap((expert) =>
        parts.map((part) => ({ source: `${expert}.${part}`, rows, rowSpan })),
      );
    const gateUp = matrices([names.gate, names.up], intermediateSize, share);
    const down = matrices([names.down], hiddenSize, whole);
    const biasOf = (part: string, of: readonly MatrixPart[]) =>
      parameters.get(biasSpec(`${name}.${part}`, of));
    this.#weights = {
      count,
      routerBias: bias
        ? parameters.get({
            ...{ name: `${name}.router.bias`, shape: [count], dtype: "float32", dummy: "zeros" },
            sources: [{ name: `${source}.${names.router}.bias`, shape: [count] }],
          })
        : undefined,
      expertScales: shape.scales
        ? parameters.get({
            ...{ name: `${name}.scales`, shape: [count], dtype: "float32", dummy: "ones" },
            sources: [{ name: `${source}.${shape.scales}`, shape: [count] }],
          })
        : undefined,
      gateUp: parameters.weight({
        ...{ name: `${name}.gateUp`, parts: gateUp, columns: hiddenSize, columnSpan: whole, experts: true },
      }),
      down: parameters.weight({
        ...{ name: `${name}.down`, parts: down, columns: intermediateSize, columnSpan: share, experts: true },
      }),
      gateUpBias: bias ? biasOf("gateUp", gateUp) : undefined,
      downBias: bias ? ofFirstRank(parameters.shard, biasOf("down", down)) : undefined,
    };
    this.#spec = shape;
  }

  addTo(context: ForwardContext, residual: Tensor, input: LinearInput): void {
    const { backend } = context;
    const { x, norm } = input;
    const logits = this.#route(context, input);
    if (backend.allReduceAdd === undefined)
      backend.experts(residual, x, logits, this.#weights, this.#spec, { norm, addTo: residual });
    else this.#addSum(context, residual, input, logits);
  }

  /** out[T, H] = experts(x[T, H]), chosen by the router's view of the tokens. */
  forward(context: ForwardContext, out: Tensor, input: LinearInput, routed: LinearInput): void {
    const { backend } = context;
    const { x, norm } = input;
    const logits = this.#route(context, routed);
    if (backend.allReduceAdd === undefined) {
      backend.experts(out, x, logits, this.#weights, this.#spec, { norm });
      return;
    }
    backend.fill(out, 0);
    this.#addSum(context, out, input, logits);
  }

  /** The router's logits, [T, E]. */
  #route(context: ForwardContext, input: LinearInput): Tensor {
    const shape = [input.x.dim(0), this.#weights.count];
    const logits = context.workspace.tensor("routerLogits", "float32", shape);
    this.#router.forward(context, logits, input);
    return logits;
  }

  /** residual[T, H] += the sum of all ranks' experts(x). */
  #addSum(
    { backend, workspace }: ForwardContext,
    residual: Tensor,
    { x, norm }: LinearInput,
    logits: Tensor,
  ): void {
    const branch = workspace.tensor("branch", residual.dtype, residual.shape);
    backend.experts(branch, x, logits, this.#weights, this.#spec, { norm });
    backend.allReduceAdd!(residual, branch);
  }
}

/** The biases of matrices' rows, one after another. */
function biasSpec(name: string, parts: readonly MatrixPart[]): ParameterSpec {
  return {
    name: `${name}.bias`,
    shape: [parts.reduce((sum, { rowSpan }) => sum + lengthOf(rowSpan), 0)],
    sources: parts.map(({ source, rows, rowSpan }) => ({
      ...{ name: `${source}.bias`, shape: [rows], slice: { dim: 0, ...rowSpan } },
    })),
    dummy: "zeros",
  };
}

/** Of a sum over ranks, one term alone has the bias. */
function ofFirstRank({ rank }: Shard, bias: Tensor): Tensor | undefined {
  return rank === 0 ? bias : undefined;
}
