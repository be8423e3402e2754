import { z } from "zod";
import type { JsonObject } from "../../base/json-object.ts";
import { ApiError } from "../errors.ts";
import { PROMPT_DOCUMENT, type PromptInput, parsePrompts } from "./prompt.ts";
import {
  type BodyLimits,
  generationShape,
  parseBody,
  promptShape,
  type UnknownFields,
} from "./request-body.ts";

/** Body of `/v1/embeddings`. */
export const EmbeddingsBody = z.object({
  ...promptShape,
  input: z.unknown().optional().meta(PROMPT_DOCUMENT),
  encoding_format: z.enum(["float", "base64"]).nullish().meta({ description: "Default float." }),
  dimensions: z.number().nullish().meta({ description: "Keep the first so many numbers. Default all." }),
  pooling: z
    .enum(["last", "mean"])
    .nullish()
    .meta({ description: "The last token's hidden state, or the mean of all. Default last." }),
  normalize: z.boolean().nullish().meta({ description: "Scale vectors to length 1. Default true." }),
  truncate_prompt_tokens: generationShape.truncate_prompt_tokens,
  cache_salt: generationShape.cache_salt,
  request_id: generationShape.request_id,
});
export type EmbeddingsBody = z.infer<typeof EmbeddingsBody>;

export interface EmbeddingsRequest {
  readonly body: Omit<EmbeddingsBody, "input">;
  readonly prompts: readonly PromptInput[];
}

/**
 * Checks a body of `/v1/embeddings`.
 * @throws ApiError naming the field.
 */
export function parseEmbeddings(
  json: JsonObject,
  onUnknown: UnknownFields,
  { maxPromptTokens }: BodyLimits,
): EmbeddingsRequest {
  const { input, ...body } = parseBody(EmbeddingsBody, json, onUnknown);
  try {
    const prompts = parsePrompts(input, maxPromptTokens, body.truncate_prompt_tokens ?? undefined);
    return { body, prompts };
  } catch (error) {
    if (!(error instanceof ApiError) || error.param !== "prompt") throw error;
    const { status, code, message, headers } = error;
    throw new ApiError(status, code, message.replace(/^prompt\b/, "input"), "input", headers);
  }
}
