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
    { hiddenSize, intermediateSize, activation, bias }: MlpShape,
  ) {
    const projection = (part: string, units: number) => ({ source: `${source}.${part}`, units });
    this.#gateUp = new Linear(parameters, `${name}.gateUp`, {
      inputSize: hiddenSize,
      projections: [projection("gate_proj", intermediateSize), projection("up_proj", intermediateSize)],
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
    const shape = [residual.dim(0), this.#gateUp.outputSize / 2];
    const activated = context.workspace.tensor("activated", residual.dtype, shape);
    this.#gateUp.forward(context, activated, x, this.#activation);
    this.#down.addTo(context, residual, activated);
  }
}
