import type { LayerCache } from "../backend/backend.ts";
import type { DeltaNetShape, StateCache } from "../backend/delta-net.ts";
import type { Tensor } from "../backend/tensor.ts";
import { invariant } from "../base/errors.ts";
import { Attention } from "../layers/attention.ts";
import { type DeltaNetLayerShape, GatedDeltaNet } from "../layers/delta-net.ts";
import type { FeedForward } from "../layers/feed-forward.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import type { RmsNorm } from "../layers/norm.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, defineDecoder, type LayerPlace, type RecurrentLayer } from "./decoder.ts";
import { expertBlock } from "./expert-block.ts";
import type { ModelFamily } from "./model.ts";
import { normPlusOne } from "./norm-plus-one.ts";
import { MTP } from "./text-config.ts";

/** Qwen3.5 and 3.6, dense. */
export const qwen3_5: ModelFamily = family("apart", denseBlock);
/** Their mixtures of experts, one of which all tokens share. */
export const qwen3_5Moe: ModelFamily = family("apart", expertBlock);
/** Qwen3-Next: the same block, its projections stored together. */
export const qwen3Next: ModelFamily = family("by key head", expertBlock);

type FeedForwardBlock = (config: ModelConfig, place: LayerPlace) => FeedForward;

function family(projections: DeltaNetLayerShape["projections"], block: FeedForwardBlock): ModelFamily {
  return {
    define: (config, part) => {
      const { linearAttention, hiddenSize, rmsNormEps } = config;
      invariant(linearAttention !== undefined, "a hybrid has a config of linear attention");
      return defineDecoder(
        config,
        part,
        (place) =>
          linearAttention.layers[place.index]
            ? new LinearLayer(config, place, { deltaNet: linearAttention, projections }, block(config, place))
            : new FullLayer(config, place, block(config, place)),
        {
          createNorm: (parameters, name, source) =>
            normPlusOne(parameters, name, source, hiddenSize, rmsNormEps),
          ignored: [MTP],
        },
      );
    },
  };
}

function denseBlock(config: ModelConfig, { parameters, name, source }: LayerPlace): FeedForward {
  return new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: false });
}

/** The norms ahead of a layer's parts; their checkpoint has what their weights are more than 1. */
function layerNorms({ hiddenSize, rmsNormEps }: ModelConfig, { parameters, name, source }: LayerPlace) {
  const norm = (part: string, of: string) =>
    normPlusOne(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
  return {
    input: norm("inputNorm", "input_layernorm"),
    mlp: norm("mlpNorm", "post_attention_layernorm"),
  };
}

/** A pre-norm block with attention whose output is gated. */
class FullLayer implements DecoderLayer {
  readonly #norms: { readonly input: RmsNorm; readonly mlp: RmsNorm };
  readonly #attention: Attention;

  constructor(
    config: ModelConfig,
    place: LayerPlace,
    private readonly mlp: FeedForward,
  ) {
    const { parameters, name, source, tables } = place;
    const { headDim, rmsNormEps, attentionBias = false } = config;
    const headNorm = (part: string, of: string) =>
      normPlusOne(parameters, `${name}.attention.${part}`, `${source}.self_attn.${of}`, headDim, rmsNormEps);
    this.#norms = layerNorms(config, place);
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...{ ...config, ...tables, window: 0, outputGate: true },
      ...{ qkvBias: attentionBias, outputBias: attentionBias },
      headNorm: { query: headNorm("queryNorm", "q_norm"), key: headNorm("keyNorm", "k_norm") },
    });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#norms.input.of(residual), cache);
    this.mlp.addTo(context, residual, this.#norms.mlp.of(residual));
  }
}

/** The same block with a gated delta rule in place of attention. */
class LinearLayer implements RecurrentLayer {
  readonly stateShape: DeltaNetShape;
  readonly #norms: { readonly input: RmsNorm; readonly mlp: RmsNorm };
  readonly #deltaNet: GatedDeltaNet;

  constructor(
    config: ModelConfig,
    place: LayerPlace,
    linear: Pick<DeltaNetLayerShape, "deltaNet" | "projections">,
    private readonly mlp: FeedForward,
  ) {
    const { parameters, name, source } = place;
    this.#norms = layerNorms(config, place);
    this.#deltaNet = new GatedDeltaNet(parameters, `${name}.deltaNet`, `${source}.linear_attn`, {
      ...{ ...config, ...linear },
    });
    this.stateShape = this.#deltaNet.stateShape;
  }

  forward(context: ForwardContext, residual: Tensor, cache: StateCache): void {
    this.#deltaNet.addTo(context, residual, this.#norms.input.of(residual), cache);
    this.mlp.addTo(context, residual, this.#norms.mlp.of(residual));
  }
}
