import { InvalidRequestError } from "../base/errors.ts";
import {
  type ResolvedSamplingParams,
  resolveSamplingParams,
  type SamplingLimits,
  type SamplingParams,
} from "../base/sampling-params.ts";
import { plainOutputs } from "../grammar/grammar-source.ts";
import { type ChatPrompt, isChat, type Prompt } from "../tokenizer/prompt-encoder.ts";

/** The model's defaults and limits for sampling parameters. */
export interface SamplingRules extends SamplingLimits {
  /** Default sampling of the model. */
  readonly defaults: SamplingParams;
  readonly hasTokenizer: boolean;
}

/**
 * Validates the sampling of each prompt, before any of them is tokenized. Without `maxTokens` the reply to a conversation
 * may fill the context.
 * @param params one for all prompts, or one for each.
 * @throws InvalidRequestError naming the parameter.
 */
export function resolveSampling(
  prompts: readonly (Prompt | ChatPrompt)[],
  params: SamplingParams | readonly SamplingParams[],
  { hasTokenizer, defaults, ...limits }: SamplingRules,
): ResolvedSamplingParams[] {
  const given = isList<SamplingParams>(params) ? params : prompts.map(() => params);
  if (given.length !== prompts.length) {
    const message = `${given.length} sampling parameters for ${prompts.length} prompts`;
    throw new InvalidRequestError("params", message);
  }
  return prompts.map((prompt, i) => {
    const own = given[i]!;
    const unlimited = isChat(prompt) && own.maxTokens === undefined;
    const sampling = resolveSamplingParams(unlimited ? { ...own, maxTokens: null } : own, limits, defaults);
    const { structuredOutputs } = sampling;
    if (!hasTokenizer) {
      if (structuredOutputs)
        throw new InvalidRequestError(
          structuredOutputs.param,
          `${structuredOutputs.param} needs a tokenizer`,
        );
      if (sampling.stop.length > 0) throw new InvalidRequestError("stop", "stop strings need a tokenizer");
      if (sampling.badWords.length > 0)
        throw new InvalidRequestError("badWords", "bad words need a tokenizer");
    }
    return structuredOutputs ? { ...sampling, structuredOutputs: plainOutputs(structuredOutputs) } : sampling;
  });
}

/** Tells one value from a list of them. */
export function isList<T>(value: T | readonly T[]): value is readonly T[] {
  return Array.isArray(value);
}
