import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import { DecoderLayer, type DecoderLayerShape } from "../layers/decoder-layer.ts";
import type { ForwardContext, Parameters } from "../layers/layer.ts";
import { RmsNorm } from "../layers/norm.ts";
import { rotaryTable } from "../layers/rotary.ts";
import type { ModelConfig } from "./config.ts";
import type { CausalLM, ModelDefinition } from "./model.ts";

/** Where families of plain pre-norm decoders differ. */
export interface DecoderTraits {
  readonly queryKeyNorm: boolean;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
}

const EMBEDDING = "embedding.weight";
const LM_HEAD = "lmHead.weight";

/** A Llama-like model: token embedding, decoder layers, final norm, LM head (tied to the embedding or its own). */
export function defineDecoder(config: ModelConfig, traits: DecoderTraits): ModelDefinition {
  const table = (name: string, source: string): ParameterSpec => {
    const shape = [config.vocabSize, config.hiddenSize];
    return { name, shape, sources: [{ name: source, shape }], dummy: "normal" };
  };
  const layers = Array.from({ length: config.numLayers }, (_, i) => layerShape(config, traits, i));
  return {
    parameters: [
      table(EMBEDDING, "model.embed_tokens.weight"),
      ...layers.flatMap((shape, i) => DecoderLayer.parameters(`layers.${i}`, `model.layers.${i}`, shape)),
      ...RmsNorm.parameters("norm", "model.norm", config.hiddenSize),
      ...(config.tieWordEmbeddings ? [] : [table(LM_HEAD, "lm_head.weight")]),
    ],
    ignored: [/\.rotary_emb\.inv_freq$/, ...(config.tieWordEmbeddings ? [/^lm_head\.weight$/] : [])],
    build: (parameters, backend, maxPositions) =>
      new Decoder(
        config,
        layers,
        parameters,
        rotaryTable(backend, config.headDim, maxPositions, config.rope),
      ),
  };
}

function layerShape(config: ModelConfig, traits: DecoderTraits, layer: number): DecoderLayerShape {
  const { hiddenSize, numHeads, numKvHeads, headDim, rmsNormEps, intermediateSize, activation } = config;
  const { queryKeyNorm, qkvBias, outputBias, mlpBias } = traits;
  return {
    attention: {
      ...{ hiddenSize, numHeads, numKvHeads, headDim, queryKeyNorm, qkvBias, outputBias },
      ...{ normEps: rmsNormEps, window: config.layerWindows[layer] ?? 0 },
    },
    mlp: { hiddenSize, intermediateSize, activation, bias: mlpBias },
    normEps: rmsNormEps,
  };
}

class Decoder implements CausalLM {
  readonly #embedding: Tensor;
  readonly #layers: readonly DecoderLayer[];
  readonly #norm: RmsNorm;
  readonly #lmHead: Tensor;

  constructor(
    readonly config: ModelConfig,
    shapes: readonly DecoderLayerShape[],
    parameters: Parameters,
    cosSin: Tensor,
  ) {
    this.#embedding = parameters.get(EMBEDDING);
    this.#layers = shapes.map((shape, i) => new DecoderLayer(parameters, `layers.${i}`, shape, cosSin));
    this.#norm = new RmsNorm(parameters, "norm", config.rmsNormEps);
    this.#lmHead = config.tieWordEmbeddings ? this.#embedding : parameters.get(LM_HEAD);
  }

  forward(context: ForwardContext): Tensor {
    const { backend, workspace, batch, kvCache } = context;
    const shape = [batch.numTokens, this.config.hiddenSize];
    const residual = workspace.tensor("residual", backend.activationDtype, shape);
    const hidden = workspace.tensor("hidden", backend.activationDtype, shape);
    backend.embedding(residual, this.#embedding, batch.tokenIds);
    for (const [i, layer] of this.#layers.entries()) {
      layer.forward(context, hidden, residual, i === 0 ? undefined : hidden, kvCache[i]!);
      context.onLayer?.(i, residual);
    }
    this.#norm.addForward(backend, hidden, residual, hidden);
    return hidden;
  }

  logits(backend: Backend, out: Tensor, hidden: Tensor): void {
    backend.linear(out, hidden, this.#lmHead);
  }
}
