import type { Activation, LinearActivation } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { FeedForward } from "./feed-forward.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear, type LinearInput } from "./linear.ts";
import type { Parameters } from "./parameters.ts";

export interface SharedExpertShape {
  readonly hiddenSize: number;
  /** Of the whole model. */
  readonly intermediateSize: number;
  readonly activation: Activation;
}

/** Experts, and beside them one of all tokens, with a gate: residual += experts(x) + sigmoid(gate · x) · expert(x). */
export class SharedExpert implements FeedForward {
  readonly #gate: Linear;
  readonly #gateUp: Linear;
  readonly #down: Linear;
  readonly #activation: LinearActivation;

  /** @param source the checkpoint's name of the block, e.g. `model.layers.0.mlp`. */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    { hiddenSize, intermediateSize, activation }: SharedExpertShape,
    private readonly experts: FeedForward,
  ) {
    const projection = (part: string, units: number) => ({
      source: `${source}.shared_expert.${part}`,
      units,
    });
    this.#gate = new Linear(parameters, `${name}.sharedGate`, {
      inputSize: hiddenSize,
      projections: [{ source: `${source}.shared_expert_gate`, units: 1 }],
      ...{ split: "none", bias: false, exact: true },
    });
    this.#gateUp = new Linear(parameters, `${name}.sharedGateUp`, {
      inputSize: hiddenSize,
      projections: [projection("gate_proj", intermediateSize), projection("up_proj", intermediateSize)],
      ...{ split: "columns", bias: false },
    });
    this.#down = new Linear(parameters, `${name}.sharedDown`, {
      inputSize: intermediateSize,
      projections: [projection("down_proj", hiddenSize)],
      ...{ split: "rows", bias: false },
    });
    this.#activation = { kind: activation, gated: true };
  }

  addTo(context: ForwardContext, residual: Tensor, x: LinearInput): void {
    const { backend, workspace } = context;
    const tokens = residual.dim(0);
    // All that is computed of x comes before the first sum: x may be the residual stream.
    const activated = workspace.tensor("activated", residual.dtype, [tokens, this.#gateUp.outputSize / 2]);
    this.#gateUp.forward(context, activated, x, this.#activation);
    backend.gateRows(activated, x.x, this.#gate.weight, x.norm);
    this.experts.addTo(context, residual, x);
    this.#down.addTo(context, residual, activated);
  }
}
