import { defineDecoder } from "./decoder.ts";
import { LlamaLayer } from "./llama.ts";
import type { ModelFamily } from "./model.ts";

/**
 * Granite: Llama's block, with multipliers of embeddings, of what is added to the residual stream, of attention's scores and of
 * logits. No product computes any of them. Where h ← h + m · f(norm(h)), h / m is a stream to which f itself is added: embeddings
 * are divided by m, and norms, which do not see the size of what they take, have an epsilon divided by m². What divides logits, the
 * weight of the head's norm has in it.
 */
export const granite: ModelFamily = {
  define: (config, part) => {
    const { residualMultiplier, embeddingMultiplier } = config;
    const scaled = { ...config, rmsNormEps: config.rmsNormEps / residualMultiplier ** 2 };
    return defineDecoder(scaled, part, (place) => new LlamaLayer(scaled, place), {
      embeddingScale: () => embeddingMultiplier / residualMultiplier,
    });
  },
};
