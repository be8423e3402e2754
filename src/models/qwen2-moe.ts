import { defineDecoder } from "./decoder.ts";
import { expertBlock } from "./expert-block.ts";
import type { ModelFamily } from "./model.ts";
import { Qwen2Layer } from "./qwen2.ts";

/** Qwen1.5's and Qwen2's mixtures of experts: Qwen2's block, with experts, one of them shared by all tokens. */
export const qwen2Moe: ModelFamily = {
  define: (config, part) =>
    defineDecoder(config, part, (place) => new Qwen2Layer(config, place, expertBlock(config, place))),
};
