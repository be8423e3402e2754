import type { LinearActivation } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { FeedForward } from "./feed-forward.ts";
import type { ForwardContext } from "./forward-context.ts";
import type { MlpShape } from "./gated-mlp.ts";
import { Linear, type LinearInput } from "./linear.ts";
import type { Parameters } from "./parameters.ts";

export interface PlainMlpShape extends Omit<MlpShape, "fused"> {
  /** The checkpoint's names of the projections within the block. */
  readonly names: { readonly up: string; readonly down: string };
}

/** down(act(up(x))). Ranks divide the intermediate size. */
export class PlainMlp implements FeedForward {
  readonly #up: Linear;
  readonly #down: Linear;
  readonly #activation: LinearActivation;

  /** @param source the checkpoint's name of the block, e.g. `gpt_neox.layers.0.mlp`. */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    { hiddenSize, intermediateSize, activation, bias, names }: PlainMlpShape,
  ) {
    this.#up = new Linear(parameters, `${name}.up`, {
      inputSize: hiddenSize,
      projections: [{ source: `${source}.${names.up}`, units: intermediateSize }],
      ...{ split: "columns", bias },
    });
    this.#down = new Linear(parameters, `${name}.down`, {
      inputSize: intermediateSize,
      projections: [{ source: `${source}.${names.down}`, units: hiddenSize }],
      ...{ split: "rows", bias },
    });
    this.#activation = { kind: activation, gated: false };
  }

  addTo(context: ForwardContext, residual: Tensor, x: LinearInput): void {
    const shape = [residual.dim(0), this.#up.outputSize];
    const activated = context.workspace.tensor("activated", residual.dtype, shape);
    this.#up.forward(context, activated, x, this.#activation);
    this.#down.addTo(context, residual, activated);
  }
}
