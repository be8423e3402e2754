import { defineDecoder } from "./decoder.ts";
import { LlamaLayer } from "./llama.ts";
import type { ModelFamily } from "./model.ts";

/** Mistral: Llama's block without biases, with a sliding window where the config gives one. */
export const mistral: ModelFamily = {
  define: (config, part) => {
    const unbiased = { ...config, attentionBias: false, mlpBias: false };
    return defineDecoder(config, part, (place) => new LlamaLayer(unbiased, place));
  },
};
