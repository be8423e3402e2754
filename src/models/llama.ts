import { defineDecoder } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** Llama 2 and 3.x. Biases exist only where the config asks for them. */
export const llama: ModelFamily = {
  architectures: ["LlamaForCausalLM"],
  define: (config) =>
    defineDecoder(config, {
      queryKeyNorm: false,
      qkvBias: config.attentionBias ?? false,
      outputBias: config.attentionBias ?? false,
      mlpBias: config.mlpBias,
    }),
};
