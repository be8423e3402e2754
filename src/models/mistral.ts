import { defineDecoder } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** Mistral: Llama without biases, with a sliding window where the config gives one. */
export const mistral: ModelFamily = {
  architectures: ["MistralForCausalLM"],
  define: (config) =>
    defineDecoder(config, { queryKeyNorm: false, qkvBias: false, outputBias: false, mlpBias: false }),
};
