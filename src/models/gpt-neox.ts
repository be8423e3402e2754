import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { Attention } from "../layers/attention.ts";
import type { ForwardContext } from "../layers/forward-context.ts";
import { LayerNorm } from "../layers/norm.ts";
import { PlainMlp } from "../layers/plain-mlp.ts";
import type { ModelConfig } from "./config.ts";
import { type DecoderLayer, defineDecoder, type LayerPlace } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** GPT-NeoX and Pythia. */
export const gptNeoX: ModelFamily = {
  define: (config, part) =>
    defineDecoder(config, part, (place) => new GptNeoXLayer(config, place), {
      names: {
        ...{ embedding: "gpt_neox.embed_in", layers: "gpt_neox.layers" },
        ...{ norm: "gpt_neox.final_layer_norm", head: "embed_out" },
      },
      createNorm: (parameters, name, source) =>
        new LayerNorm(parameters, name, source, config.hiddenSize, config.rmsNormEps),
      // Older files have what is computed otherwise: the causal mask, and what masks with.
      ignored: [/\.attention\.(?:bias|masked_bias)$/],
    }),
};

/** Attention and a plain feed-forward, each after a norm of its own of the same residual stream. Biases everywhere. */
class GptNeoXLayer implements DecoderLayer {
  readonly #inputNorm: LayerNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: LayerNorm;
  readonly #mlp: PlainMlp;
  readonly #isParallel: boolean;

  constructor(config: ModelConfig, { parameters, index, name, source, tables }: LayerPlace) {
    const { hiddenSize, rmsNormEps, attentionBias = true, layerWindows, parallelResidual } = config;
    const norm = (part: string, of: string) =>
      new LayerNorm(parameters, `${name}.${part}`, `${source}.${of}`, hiddenSize, rmsNormEps);
    this.#inputNorm = norm("inputNorm", "input_layernorm");
    this.#attention = new Attention(parameters, `${name}.attention`, `${source}.attention`, {
      ...{ ...config, ...tables, window: layerWindows[index]! },
      ...{ qkvBias: attentionBias, outputBias: attentionBias },
      fused: { qkv: "query_key_value", output: "dense", order: "by head" },
    });
    this.#mlpNorm = norm("mlpNorm", "post_attention_layernorm");
    this.#mlp = new PlainMlp(parameters, `${name}.mlp`, `${source}.mlp`, {
      ...{ ...config, bias: true },
      names: { up: "dense_h_to_4h", down: "dense_4h_to_h" },
    });
    this.#isParallel = parallelResidual;
  }

  forward(context: ForwardContext, residual: Tensor, cache: LayerCache): void {
    const attentionInput = this.#inputNorm.of(context, residual);
    const mlpInput = this.#isParallel ? this.#mlpNorm.of(context, residual, "mlpInput") : undefined;
    this.#attention.addTo(context, residual, attentionInput, cache);
    this.#mlp.addTo(context, residual, mlpInput ?? this.#mlpNorm.of(context, residual));
  }
}
