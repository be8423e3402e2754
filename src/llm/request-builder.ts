import { InvalidRequestError } from "../base/errors.ts";
import {
  type ResolvedSamplingParams,
  resolveSamplingParams,
  type SamplingLimits,
  type SamplingParams,
} from "../base/sampling-params.ts";
import type { EngineRequest } from "../engine/request.ts";
import { type ChatPrompt, isChat, type Prompt, type PromptEncoder } from "../tokenizer/prompt-encoder.ts";

/** What sampling parameters are resolved against. */
export interface SamplingRules extends SamplingLimits {
  /** Default sampling of the model. */
  readonly defaults: SamplingParams;
  readonly hasTokenizer: boolean;
}

/**
 * Validates sampling alone, so that a request can be refused before any of it is tokenized. Without `maxTokens` the
 * reply to a conversation may fill the context.
 * @throws InvalidRequestError naming the parameter.
 */
export function resolveSampling(
  prompt: Prompt | ChatPrompt,
  params: SamplingParams,
  { hasTokenizer, defaults, ...limits }: SamplingRules,
): ResolvedSamplingParams {
  const given = isChat(prompt) && params.maxTokens === undefined ? { ...params, maxTokens: null } : params;
  const sampling = resolveSamplingParams(given, limits, defaults);
  if (!hasTokenizer) {
    if (sampling.stop.length > 0) throw new InvalidRequestError("stop", "stop strings need a tokenizer");
    if (sampling.badWords.length > 0) throw new InvalidRequestError("badWords", "bad words need a tokenizer");
  }
  return sampling;
}

/** Turns prompts and sampling parameters from outside into requests that the engine can trust. */
export class RequestBuilder {
  constructor(
    private readonly encoder: PromptEncoder,
    private readonly rules: SamplingRules,
  ) {}

  /** @throws InvalidRequestError naming the parameter: sampling out of range, or as `PromptEncoder.encode`. */
  build(
    id: string,
    prompt: Prompt | ChatPrompt,
    params: SamplingParams,
    arrivalTime: number,
    options: { readonly logits?: boolean } = {},
  ): EngineRequest {
    const sampling = resolveSampling(prompt, params, this.rules);
    const { text, tokenIds, cacheSalt } = this.encoder.encode(prompt);
    const badWordTokens = this.encoder.badWordTokens(sampling.badWords);
    return {
      ...{ id, promptTokenIds: tokenIds, sampling, badWordTokens, arrivalTime },
      ...(text !== undefined && { prompt: text }),
      ...(cacheSalt !== undefined && { cacheSalt }),
      ...(options.logits && { logits: true }),
    };
  }
}
