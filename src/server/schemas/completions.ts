import { z } from "zod";
import type { JsonObject } from "../../base/json-object.ts";
import type { SamplingParams } from "../../base/sampling-params.ts";
import { invalidValue, unsupported } from "../errors.ts";
import { PROMPT_DOCUMENT, type PromptInput, parsePrompts } from "./prompt.ts";
import {
  type BodyLimits,
  checkGeneration,
  generationShape,
  parseBody,
  type UnknownFields,
} from "./request-body.ts";
import { samplingParams } from "./sampling.ts";
import { structuredParams } from "./structured.ts";

/** Body of `/v1/completions`. */
export const CompletionsBody = z.object({
  ...generationShape,
  prompt: z.unknown().optional().meta(PROMPT_DOCUMENT),
  logprobs: z.number().nullish().meta({ description: "Top log-probabilities of each token." }),
  best_of: z.int().nullish().meta({ description: "Only the value of n." }),
});
export type CompletionsBody = z.infer<typeof CompletionsBody>;

export interface CompletionsRequest {
  readonly body: Omit<CompletionsBody, "prompt">;
  readonly prompts: readonly PromptInput[];
  readonly sampling: SamplingParams;
  /** `echo` with `max_tokens` 0: nothing is generated, the prompt alone is returned. */
  readonly promptOnly: boolean;
  /** The log-probabilities of the prompt that each choice repeats: those of the echo and `prompt_logprobs`. */
  readonly promptScores: { readonly tops: readonly number[]; readonly inChoices: true };
}

/**
 * Checks a body of `/v1/completions`.
 * @throws ApiError naming the field.
 */
export function parseCompletions(
  json: JsonObject,
  onUnknown: UnknownFields,
  { maxPromptTokens }: BodyLimits,
): CompletionsRequest {
  const { prompt, ...body } = parseBody(CompletionsBody, json, onUnknown);
  checkGeneration(body);
  const params: SamplingParams = { ...samplingParams(body), ...structuredParams(body) };
  checkBestOf(body.best_of, params.n ?? 1);
  const echo = body.echo ?? false;
  const promptOnly = echo && params.maxTokens === 0;
  const logprobs = body.logprobs ?? undefined;
  const tops = [params.promptLogprobs, echo ? logprobs : undefined].filter((top) => typeof top === "number");
  if (echo && logprobs !== undefined) {
    if (params.promptLogprobs !== undefined && params.promptLogprobs !== logprobs)
      throw invalidValue("prompt_logprobs", "prompt_logprobs must equal logprobs when the prompt is echoed");
    params.promptLogprobs = logprobs;
  }
  if (logprobs !== undefined) params.logprobs = logprobs;
  // One token is the least that the engine computes; the reply leaves it out.
  if (promptOnly) params.maxTokens = 1;
  const prompts = parsePrompts(prompt, maxPromptTokens, body.truncate_prompt_tokens ?? undefined);
  return { body, prompts, sampling: params, promptOnly, promptScores: { tops, inChoices: true } };
}

function checkBestOf(bestOf: number | null | undefined, n: number): void {
  if (bestOf === null || bestOf === undefined || bestOf === n) return;
  if (bestOf < n || bestOf > 16)
    throw invalidValue("best_of", `best_of must be from n (${n}) to 16, not ${bestOf}`);
  throw unsupported("best_of", "best_of: only the value of n is supported");
}
