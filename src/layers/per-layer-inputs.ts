import type { Activation, LinearActivation } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Embedding } from "./embedding.ts";
import type { ForwardContext } from "./forward-context.ts";
import { Linear } from "./linear.ts";
import { RmsNorm } from "./norm.ts";
import type { Parameters } from "./parameters.ts";

export interface PerLayerShape {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  /** P: dimensions of a layer's input. */
  readonly inputSize: number;
  readonly activation: Activation;
  readonly eps: number;
}

/** The inputs of all L layers beside each other, [T, L·P]: the same memory in all of a forward pass. */
function inputsOf({ backend, workspace }: ForwardContext, tokens: number, shape: PerLayerShape): Tensor {
  const { numLayers, inputSize } = shape;
  return workspace.tensor("perLayerInputs", backend.activationDtype, [tokens, numLayers * inputSize]);
}

/**
 * An input of each layer's own for each token, as Gemma 3n introduced it: half of it is a vector that the token has for that layer, half
 * a projection of the token's embedding, normalised; their sum is divided by the root of 2. Each rank has all of the projection, and the
 * vectors of its part of the vocabulary: tables of them are larger than all that is multiplied by.
 */
export class PerLayerInputs {
  readonly #embedding: Embedding;
  readonly #projection: Linear;
  readonly #norm: RmsNorm;

  constructor(
    parameters: Parameters,
    private readonly shape: PerLayerShape,
  ) {
    const { vocabSize, hiddenSize, numLayers, inputSize, eps } = shape;
    const width = numLayers * inputSize;
    const source = (part: string) => `model.${part}`;
    this.#embedding = new Embedding(
      ...([parameters, "perLayerEmbedding", source("embed_tokens_per_layer"), vocabSize, width] as const),
    );
    this.#projection = new Linear(parameters, "perLayerProjection", {
      inputSize: hiddenSize,
      projections: [{ source: source("per_layer_model_projection"), units: width }],
      ...{ split: "none", bias: false },
    });
    // Of what is divided by the root of the hidden size, which is nothing to a norm but for its epsilon.
    this.#norm = new RmsNorm(
      ...([parameters, "perLayerNorm", source("per_layer_projection_norm")] as const),
      ...([inputSize, eps * hiddenSize, { scale: Math.SQRT1_2, offset: 0 }] as const),
    );
  }

  /** @param embedded the tokens' embeddings [T, H], scaled */
  compute(context: ForwardContext, embedded: Tensor): void {
    const { numLayers, inputSize } = this.shape;
    const tokens = embedded.dim(0);
    const inputs = inputsOf(context, tokens, this.shape);
    // The vectors are stored to be multiplied by the root of their size.
    this.#embedding.forward(context, inputs, context.batch.tokenIds, Math.sqrt(inputSize / 2));
    const projected = context.workspace.tensor("perLayerProjection", inputs.dtype, inputs.shape);
    this.#projection.forward(context, projected, { x: embedded });
    const rows = (tensor: Tensor) => tensor.reshape(tokens * numLayers, inputSize);
    this.#norm.addTo(context, rows(inputs), rows(projected));
  }
}

/** A layer's use of its input: residual += norm(projection · (act(gate · residual) · input)). */
export class PerLayerBlock {
  readonly #gate: Linear;
  readonly #projection: Linear;
  readonly #norm: RmsNorm;
  readonly #activation: LinearActivation;

  /** @param source the checkpoint's name of the layer */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    private readonly layer: number,
    private readonly shape: PerLayerShape,
  ) {
    const { hiddenSize, inputSize, activation, eps } = shape;
    const linear = (part: string, of: string, inputs: number, outputs: number) =>
      new Linear(parameters, `${name}.${part}`, {
        inputSize: inputs,
        projections: [{ source: `${source}.${of}`, units: outputs }],
        ...{ split: "none", bias: false },
      });
    this.#gate = linear("perLayerGate", "per_layer_input_gate", hiddenSize, inputSize);
    this.#projection = linear("perLayerProjection", "per_layer_projection", inputSize, hiddenSize);
    this.#norm = new RmsNorm(
      ...([
        parameters,
        `${name}.perLayerNorm`,
        `${source}.post_per_layer_input_norm`,
        hiddenSize,
        eps,
      ] as const),
    );
    this.#activation = { kind: activation, gated: false };
  }

  /** The sum is multiplied by `scale` [1], if there is one. */
  addTo(context: ForwardContext, residual: Tensor, scale?: Tensor): void {
    const { backend, workspace } = context;
    const { inputSize } = this.shape;
    const tokens = residual.dim(0);
    const gated = workspace.tensor("perLayerGate", residual.dtype, [tokens, inputSize]);
    this.#gate.forward(context, gated, { x: residual }, this.#activation);
    backend.multiplyColumns(gated, inputsOf(context, tokens, this.shape), this.layer * inputSize);
    const projected = workspace.tensor("sublayer", residual.dtype, residual.shape);
    this.#projection.forward(context, projected, { x: gated });
    this.#norm.addTo(context, residual, projected, scale);
  }
}
