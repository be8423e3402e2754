import { defineDecoder } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** Qwen3 dense: each query and key head is normalised before the rotary embedding. */
export const qwen3: ModelFamily = {
  architectures: ["Qwen3ForCausalLM"],
  define: (config) =>
    defineDecoder(config, {
      queryKeyNorm: true,
      qkvBias: config.attentionBias ?? false,
      outputBias: config.attentionBias ?? false,
      mlpBias: false,
    }),
};
