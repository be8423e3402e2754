import type { Activation, LinearActivation } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { FeedForward } from "./feed-forward.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput } from "./linear.ts";
import type { Parameters } from "./parameters.ts";

export interface MlpShape {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly activation: Activation;
  readonly bias: boolean;
  /** The tensor that has the rows of the gate and, after them, of up. Default: `gate_proj` and `up_proj` have each their own. */
  readonly fused?: string;
}

/** down(act(gate(x)) · up(x)) (Shazeer 2020), gate and up merged in one product. Ranks divide the intermediate size. */
export class GatedMlp implements FeedForward {
  readonly #gateUp: Linear;
  readonly #down: Linear;
  readonly #activation: LinearActivation;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.mlp`. */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    { hiddenSize, intermediateSize, activation, bias, fused }: MlpShape,
  ) {
    const projection = (part: string, units: number) => ({ source: `${source}.${part}`, units });
    const half = (part: string, start: number) => ({
      ...projection(fused ?? part, intermediateSize),
      ...(fused !== undefined && { within: { rows: 2 * intermediateSize, start, stride: 1 } }),
    });
    this.#gateUp = new Linear(parameters, `${name}.gateUp`, {
      inputSize: hiddenSize,
      projections: [half("gate_proj", 0), half("up_proj", intermediateSize)],
      ...{ split: "columns", bias },
    });
    this.#down = new Linear(parameters, `${name}.down`, {
      inputSize: intermediateSize,
      projections: [projection("down_proj", hiddenSize)],
      ...{ split: "rows", bias },
    });
    this.#activation = { kind: activation, gated: true };
  }

  addTo(context: ForwardContext, residual: Tensor, x: LinearInput): void {
    this.#down.addTo(context, residual, this.#activate(context, x));
  }

  /** mlp(x[T, H]), [T, H] in memory of the workspace. */
  forward(context: ForwardContext, x: LinearInput): Tensor {
    const out = context.workspace.tensor("sublayer", x.x.dtype, x.x.shape);
    this.#down.sumTo(context, out, this.#activate(context, x));
    return out;
  }

  #activate(context: ForwardContext, x: LinearInput): Tensor {
    const shape = [x.x.dim(0), this.#gateUp.outputSize / 2];
    const activated = context.workspace.tensor("activated", x.x.dtype, shape);
    this.#gateUp.forward(context, activated, x, this.#activation);
    return activated;
  }
}
