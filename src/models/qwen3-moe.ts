import { defineDecoder } from "./decoder.ts";
import { expertBlock } from "./expert-block.ts";
import type { ModelFamily } from "./model.ts";
import { Qwen3Layer } from "./qwen3.ts";

/** Qwen3's mixtures of experts: its block, with experts in all layers that the config does not leave out. */
export const qwen3Moe: ModelFamily = {
  define: (config, part) =>
    defineDecoder(config, part, (place) => new Qwen3Layer(config, place, expertBlock(config, place))),
};
