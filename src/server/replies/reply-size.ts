import type { ResolvedSamplingParams } from "../../base/sampling-params.ts";
import { invalidValue } from "../errors.ts";

/** Longest prompt that may be scored, in tokens: log-probabilities of all of them are kept. */
const MAX_SCORED_PROMPT = 8192;

/** The log-probabilities of prompts in a reply. */
export interface PromptScores {
  /** Counts of the likeliest at each position; an entry for each field that has them. */
  readonly tops: readonly number[];
  /** True if each choice repeats them. */
  readonly inChoices: boolean;
}

/** A checked request, as far as it decides the size of its reply. */
export interface SizedRequest {
  readonly promptTokenIds: { readonly length: number };
  readonly sampling: ResolvedSamplingParams;
  readonly maxTokens: number;
}

/**
 * Bounds the log-probabilities of a reply: prompts × n × tokens × (logprobs + 1).
 * @param logprobs the field that asks for them.
 * @throws ApiError 400 naming the fields and the bound.
 */
export function checkReplySize(
  requests: readonly SizedRequest[],
  { tops, inChoices }: PromptScores,
  most: number,
  logprobs: string,
): void {
  let total = 0;
  for (const { promptTokenIds, sampling, maxTokens } of requests) {
    const { length } = promptTokenIds;
    if (sampling.promptLogprobs !== undefined && length > MAX_SCORED_PROMPT)
      throw invalidValue(logprobs, `log-probabilities of prompts are limited to ${MAX_SCORED_PROMPT} tokens`);
    const generated = sampling.logprobs === undefined ? 0 : maxTokens * (sampling.logprobs + 1);
    const ofPrompt = tops.reduce((sum, top) => sum + length * (top + 1), 0);
    total += sampling.n * generated + (inChoices ? sampling.n : 1) * ofPrompt;
  }
  if (total <= most) return;
  const product = "prompts × n × tokens × (log-probabilities + 1)";
  const message = `${product} come to ${total}, at most ${most} are allowed: lower n, max_tokens or ${logprobs}`;
  throw invalidValue(logprobs, message);
}

/**
 * The most tokens of a completion whose `max_tokens` was left out, so that those of a reply have at most half of the
 * log-probabilities that it may have; undefined: as many as fit.
 */
export function outputBound(
  completions: number,
  logprobs: number | null | undefined,
  most: number,
): number | undefined {
  if (logprobs === null || logprobs === undefined || logprobs < 0) return undefined;
  return Math.max(1, Math.floor(most / 2 / (completions * (logprobs + 1))));
}
