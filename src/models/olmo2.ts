import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Attention } from "../layers/attention.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import { RmsNorm } from "../layers/norm.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, defineDecoder, type LayerPlace } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** OLMo 2, and OLMo 3, most of whose layers have a window. */
export const olmo2: ModelFamily = {
  define: (config, part) => defineDecoder(config, part, (place) => new Olmo2Layer(config, place)),
};

/**
 * A block without norms ahead: what attention and feed-forward give is normalised before it is added. So are all of a token's
 * queries together, and all of its keys.
 */
class Olmo2Layer implements DecoderLayer {
  readonly #attention: Attention;
  readonly #attentionNorm: RmsNorm;
  readonly #mlp: GatedMlp;
  readonly #mlpNorm: RmsNorm;

  constructor(config: ModelConfig, { parameters, index, name, source, tables }: LayerPlace) {
    const { hiddenSize, rmsNormEps, attentionBias = false, layerWindows } = config;
    const norm = (part: string, of: string) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...{ ...config, ...tables, window: layerWindows[index]! },
      ...{ qkvBias: attentionBias, outputBias: attentionBias, projectionNormEps: rmsNormEps },
    });
    this.#attentionNorm = norm("attentionNorm", "post_attention_layernorm");
    this.#mlp = new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: false });
    this.#mlpNorm = norm("mlpNorm", "post_feedforward_layernorm");
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    const attended = this.#attention.forward(context, { x: residual }, cache);
    this.#attentionNorm.addTo(context, residual, attended);
    const computed = this.#mlp.forward(context, { x: residual });
    this.#mlpNorm.addTo(context, residual, computed);
  }
}
