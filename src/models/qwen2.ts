import { defineDecoder } from "./decoder.ts";
import type { ModelFamily } from "./model.ts";

/** Qwen2 and Qwen2.5: the query, key and value projections have biases, the output projection has none. */
export const qwen2: ModelFamily = {
  architectures: ["Qwen2ForCausalLM"],
  define: (config) =>
    defineDecoder(config, { queryKeyNorm: false, qkvBias: true, outputBias: false, mlpBias: false }),
};
