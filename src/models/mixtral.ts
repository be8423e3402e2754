import { defineDecoder } from "./decoder.ts";
import { expertBlock } from "./expert-block.ts";
import { LlamaLayer } from "./llama.ts";
import type { ModelFamily } from "./model.ts";

const NAMES = { gate: "w1", up: "w3", down: "w2" };

/** Mixtral: Mistral's block, with experts in every layer. */
export const mixtral: ModelFamily = {
  define: (config, part) => {
    const unbiased = { ...config, attentionBias: false };
    return defineDecoder(config, part, (place) => {
      const experts = expertBlock(config, place, { block: "block_sparse_moe", names: NAMES });
      return new LlamaLayer(unbiased, place, experts);
    });
  },
};
