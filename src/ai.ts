/** Octavo as a provider of the AI SDK, in this process: no server, no HTTP. */

import type { EmbeddingModelV4, LanguageModelV4 } from "@ai-sdk/provider";
import { OctavoEmbeddingModel, type OctavoEmbeddingOptions } from "./ai/embedding-model.ts";
import { OctavoLanguageModel } from "./ai/language-model.ts";
import type { AsyncLLM } from "./async/async-llm.ts";

export type { OctavoCallOptions } from "./ai/call-request.ts";
export type { OctavoEmbeddingOptions } from "./ai/embedding-model.ts";

/** How a model's replies are read. */
export interface OctavoModelOptions {
  /** The form of the model's tool calls, as of `octavo serve --tool-call-parser`. Default `auto`: as its chat template says. */
  readonly toolCallParser?: string;
  /** The form of the model's thoughts, likewise. */
  readonly reasoningParser?: string;
}

/**
 * A model for `generateText`, `streamText` and all else of the AI SDK that takes one. It lives as long as `llm`, which stays the
 * caller's.
 * @throws ConfigError for parsers that are not known or do not go together.
 */
export function octavo(llm: AsyncLLM, options: OctavoModelOptions = {}): LanguageModelV4 {
  const { toolCallParser = "auto", reasoningParser = "auto" } = options;
  return new OctavoLanguageModel(llm, { toolCallParser, reasoningParser });
}

/** A model for `embed` and `embedMany`. */
export function octavoEmbedding(llm: AsyncLLM, options: OctavoEmbeddingOptions = {}): EmbeddingModelV4 {
  return new OctavoEmbeddingModel(llm, options);
}
