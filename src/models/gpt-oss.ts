import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Attention } from "../layers/attention.ts";
import type { FeedForward } from "../layers/feed-forward.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { RmsNorm } from "../layers/norm.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, defineDecoder, type LayerPlace } from "./decoder.ts";
import { expertBlock } from "./expert-block.ts";
import type { ModelFamily } from "./model.ts";

/** gpt-oss, whose experts are stored in MXFP4, or as columns of floats. */
export const gptOss: ModelFamily = {
  define: (config, part) => defineDecoder(config, part, (place) => new GptOssLayer(config, place)),
};

/** A pre-norm block with biases throughout, attention sinks, a window in every other layer, and experts. */
class GptOssLayer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #experts: FeedForward;

  constructor(config: ModelConfig, place: LayerPlace) {
    const { parameters, index, name, source, tables } = place;
    const { hiddenSize, rmsNormEps, attentionBias = true, layerWindows } = config;
    const norm = (part: string, of: string) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...config,
      ...{ qkvBias: attentionBias, outputBias: attentionBias, window: layerWindows[index]!, ...tables },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    this.#experts = expertBlock(config, place, { names: { router: "router" }, bias: true });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#inputNorm.of(residual), cache);
    this.#experts.addTo(context, residual, this.#mlpNorm.of(residual));
  }
}
