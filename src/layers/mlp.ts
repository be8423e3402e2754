import type { Activation } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import type { ForwardContext, Parameters } from "./layer.ts";
import { Linear } from "./linear.ts";

export interface MlpShape {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly activation: Activation;
  readonly bias: boolean;
}

/** Gated feed-forward block: down(act(gate(x)) · up(x)) (Shazeer 2020), gate and up merged in one product. */
export class GatedMlp {
  readonly #gateUp: Linear;
  readonly #down: Linear;

  constructor(
    parameters: Parameters,
    name: string,
    private readonly shape: MlpShape,
  ) {
    this.#gateUp = new Linear(parameters, `${name}.gateUp`);
    this.#down = new Linear(parameters, `${name}.down`);
  }

  /** out[T, H] from x[T, H]; `out` may be `x`. */
  forward({ backend, workspace }: ForwardContext, out: Tensor, x: Tensor): void {
    const tokens = x.dim(0);
    const gateUp = workspace.tensor("gateUp", backend.activationDtype, [tokens, this.#gateUp.outputSize]);
    this.#gateUp.forward(backend, gateUp, x);
    const activated = workspace.tensor("activated", x.dtype, [tokens, this.shape.intermediateSize]);
    backend.gatedActivation(activated, gateUp, this.shape.activation);
    this.#down.forward(backend, out, activated);
  }

  static parameters(name: string, source: string, shape: MlpShape): ParameterSpec[] {
    const { hiddenSize, intermediateSize, bias } = shape;
    const gateUp = [`${source}.gate_proj`, `${source}.up_proj`].map((n) => [n, intermediateSize] as const);
    return [
      ...Linear.parameters(`${name}.gateUp`, hiddenSize, gateUp, bias),
      ...Linear.parameters(`${name}.down`, intermediateSize, [[`${source}.down_proj`, hiddenSize]], bias),
    ];
  }
}
