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

/** Qwen2 and Qwen2.5. */
export const qwen2: ModelFamily = {
  define: (config, part) => {
    const biased = { ...config, attentionBias: true };
    return defineDecoder(biased, part, (place) => new Qwen2Layer(biased, place));
  },
};

/** A pre-norm block. The query, key and value projections have biases by default, the output projection has none. */
export class Qwen2Layer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: FeedForward;

  /** @param mlp default the gated one of a dense model */
  constructor(config: ModelConfig, place: LayerPlace, mlp?: FeedForward) {
    const { parameters, index, name, source, tables } = place;
    const { hiddenSize, rmsNormEps, attentionBias = true, layerWindows } = config;
    const norm = (part: string, of: string) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...config,
      ...{ qkvBias: attentionBias, outputBias: false, window: layerWindows[index]!, ...tables },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    this.#mlp = mlp ?? new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, { ...config, bias: false });
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#inputNorm.of(residual), cache);
    this.#mlp.addTo(context, residual, this.#mlpNorm.of(residual));
  }
}
