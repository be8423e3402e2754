import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { rounded } from "../base/dtype.ts";
import { Attention } from "../layers/attention.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import type { RmsNorm } from "../layers/norm.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, type DecoderOptions, defineDecoder, type LayerPlace } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";
import { normPlusOne } from "./norm-plus-one.ts";

/** Gemma 1. Its published configs name another activation than the models were trained with. */
export const gemma: ModelFamily = {
  define: (config, part) => {
    const trained = { ...config, activation: "gelu_tanh" } as const;
    return defineDecoder(trained, part, (place) => new GemmaLayer(trained, place), optionsOf(trained));
  },
};

/** Gemma 2, and the text part of Gemma 3, which has norms of each query and key head in place of soft caps. */
export const gemma2: ModelFamily = {
  define: (config, part) =>
    defineDecoder(config, part, (place) => new Gemma2Layer(config, place, false), optionsOf(config)),
};
export const gemma3: ModelFamily = {
  define: (config, part) =>
    defineDecoder(config, part, (place) => new Gemma2Layer(config, place, true), optionsOf(config)),
};

function optionsOf({ hiddenSize, rmsNormEps }: ModelConfig): DecoderOptions {
  return {
    createNorm: (parameters, name, source) => normPlusOne(parameters, name, source, hiddenSize, rmsNormEps),
    // Rounded as the embeddings themselves are: so the models were trained.
    embeddingScale: (dtype) => rounded(Math.sqrt(hiddenSize), dtype),
  };
}

/** Llama's block with a gate of GELU. */
class GemmaLayer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: GatedMlp;

  constructor(config: ModelConfig, { parameters, index, name, source, tables }: LayerPlace) {
    const { hiddenSize, rmsNormEps, attentionBias = false, layerWindows } = config;
    const norm = (part: string, of: string) =>
      normPlusOne(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...{ ...config, ...tables, window: layerWindows[index]! },
      ...{ qkvBias: attentionBias, outputBias: attentionBias },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    this.#mlp = new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: false });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#inputNorm.of(residual), cache);
    this.#mlp.addTo(context, residual, this.#mlpNorm.of(residual));
  }
}

/** A block with norms on both sides of attention and of the feed-forward. */
class Gemma2Layer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #attentionNorm: RmsNorm;
  readonly #mlpInputNorm: RmsNorm;
  readonly #mlp: GatedMlp;
  readonly #mlpNorm: RmsNorm;

  constructor(config: ModelConfig, place: LayerPlace, hasHeadNorms: boolean) {
    const { parameters, index, name, source, tables } = place;
    const { hiddenSize, headDim, rmsNormEps, attentionBias = false, layerWindows } = config;
    const norm = (part: string, of: string, size = hiddenSize) =>
      normPlusOne(parameters, `${name}.${part}`, `${source}.${of}`, size, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...{ ...config, ...tables, window: layerWindows[index]! },
      ...{ qkvBias: attentionBias, outputBias: attentionBias },
      ...(hasHeadNorms && {
        headNorm: {
          query: norm("attention.queryNorm", "self_attn.q_norm", headDim),
          key: norm("attention.keyNorm", "self_attn.k_norm", headDim),
        },
      }),
    });
    this.#attentionNorm = norm("attentionNorm", "post_attention_layernorm");
    this.#mlpInputNorm = norm("mlpInputNorm", "pre_feedforward_layernorm");
    this.#mlp = new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: false });
    this.#mlpNorm = norm("mlpNorm", "post_feedforward_layernorm");
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    const attended = this.#attention.forward(context, this.#inputNorm.of(residual), cache);
    this.#attentionNorm.addTo(context, residual, attended);
    const computed = this.#mlp.forward(context, this.#mlpInputNorm.of(residual));
    this.#mlpNorm.addTo(context, residual, computed);
  }
}
