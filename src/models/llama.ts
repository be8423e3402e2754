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

/** Llama 2 and 3.x. Biases exist only where the config asks for them. */
export const llama: ModelFamily = {
  define: (config, part) => defineDecoder(config, part, (place) => new LlamaLayer(config, place)),
};

/** The pre-norm block that most families vary. */
export class LlamaLayer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: FeedForward;

  /** @param mlp default the gated one of a dense model */
  constructor(config: ModelConfig, place: LayerPlace, mlp?: FeedForward) {
    const { parameters, index, name, source, tables } = place;
    const { hiddenSize, rmsNormEps, attentionBias = false, mlpBias, layerWindows } = config;
    const norm = (part: string, of: string) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...config,
      ...{ qkvBias: attentionBias, outputBias: attentionBias, window: layerWindows[index]!, ...tables },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    this.#mlp = mlp ?? new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: mlpBias });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#inputNorm.of(residual), cache);
    this.#mlp.addTo(context, residual, this.#mlpNorm.of(residual));
  }
}
