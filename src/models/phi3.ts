import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Attention } from "../layers/attention.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { GatedMlp } from "../layers/gated-mlp.ts";
import { RmsNorm } from "../layers/norm.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, defineDecoder, type LayerPlace } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** Phi-3, Phi-4 and Phi-4-mini. */
export const phi3: ModelFamily = {
  define: (config, part) => defineDecoder(config, part, (place) => new Phi3Layer(config, place)),
};

/** Llama's block, whose checkpoint has query, key and value in one tensor, and gate and up in another. */
class Phi3Layer implements DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: GatedMlp;

  constructor(config: ModelConfig, { parameters, index, name, source, tables }: LayerPlace) {
    const { hiddenSize, rmsNormEps, layerWindows } = config;
    const norm = (part: string, of: string) =>
      new RmsNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.self_attn`, {
      ...{ ...config, ...tables, window: layerWindows[index]! },
      ...{ qkvBias: false, outputBias: false },
      fused: { qkv: "qkv_proj", output: "o_proj", order: "stacked" },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    const mlp = { ...config, bias: false, fused: "gate_up_proj" };
    this.#mlp = new GatedMlp(parameters, `${name}.mlp`, `${source}.mlp`, mlp);
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    this.#attention.addTo(context, residual, this.#inputNorm.of(residual), cache);
    this.#mlp.addTo(context, residual, this.#mlpNorm.of(residual));
  }
}
