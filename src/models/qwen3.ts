import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Attention } from "../layers/attention.ts";
import type { FeedForward } from "../layers/feed-forward.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import { RmsNorm } from "../layers/norm.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, defineDecoder, type LayerPlace } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** Qwen3, dense. */
export const qwen3: ModelFamily = {
  define: (config, part) => defineDecoder(config, part, (place) => new Qwen3Layer(config, place)),
};

/** A pre-norm block. Each query and key head is normalised before the rotary embedding. */
export class Qwen3Layer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: FeedForward;

  /** @param mlp default the gated one of a dense model */
  constructor(config: ModelConfig, place: LayerPlace, mlp?: FeedForward) {
    const { parameters, index, name, source, tables } = place;
    const { hiddenSize, headDim, rmsNormEps, attentionBias = false, layerWindows } = config;
    const norm = (part: string, of: string, size = hiddenSize) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, size, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...config,
      ...{ qkvBias: attentionBias, outputBias: attentionBias, window: layerWindows[index]!, ...tables },
      headNorm: {
        query: norm("attention.queryNorm", "self_attn.q_norm", headDim),
        key: norm("attention.keyNorm", "self_attn.k_norm", headDim),
      },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    this.#mlp = mlp ?? new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: false });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#inputNorm.of(residual), cache);
    this.#mlp.addTo(context, residual, this.#mlpNorm.of(residual));
  }
}
