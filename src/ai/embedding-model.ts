import type { EmbeddingModelV4, EmbeddingModelV4CallOptions, EmbeddingModelV4Result } from "@ai-sdk/provider";
import type { AsyncLLM } from "../async/async-llm.ts";
import type { EmbedOptions } from "../base/embedding.ts";

/** The options of a model's vectors; a call may have others as `providerOptions.octavo`. */
export type OctavoEmbeddingOptions = Omit<EmbedOptions, "signal">;

/** A model of this process as the AI SDK knows embedding models. */
export class OctavoEmbeddingModel implements EmbeddingModelV4 {
  readonly specificationVersion = "v4";
  readonly provider = "octavo";
  readonly modelId: string;
  /** The engine makes batches of them by itself. */
  readonly maxEmbeddingsPerCall = undefined;
  readonly supportsParallelCalls = true;

  constructor(
    private readonly llm: AsyncLLM,
    private readonly options: OctavoEmbeddingOptions,
  ) {
    this.modelId = llm.model;
  }

  /** @throws as `AsyncLLM.embed`. */
  async doEmbed(call: EmbeddingModelV4CallOptions): Promise<EmbeddingModelV4Result> {
    const { values, dimensions, abortSignal: signal, providerOptions } = call;
    const vectors = await this.llm.embed(values, {
      ...this.options,
      ...(dimensions !== undefined && { dimensions }),
      ...(providerOptions?.["octavo"] as OctavoEmbeddingOptions | undefined),
      ...(signal && { signal }),
    });
    return { embeddings: vectors.map((vector) => Array.from(vector)), warnings: [] };
  }
}
