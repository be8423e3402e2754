import { ContextLengthError, InvalidRequestError } from "../base/errors.ts";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { SlotSampling } from "../runner/types.ts";

/** Logits that a request may ask for, in elements: 4 GiB of float32, the most that one typed array holds. */
const MAX_LOGITS = 2 ** 30;

/** A prompt to continue, as tokens. */
export interface EngineRequest {
  /** Unique among the engine's requests that have not been released. */
  readonly id: string;
  /** At least one; each in [0, vocabSize). */
  readonly promptTokenIds: readonly number[];
  /** The prompt's text, to be repeated in the output. */
  readonly prompt?: string;
  readonly sampling: ResolvedSamplingParams;
  /** `sampling.badWords` as tokens; every spelling of a word is an entry. */
  readonly badWordTokens?: readonly (readonly number[])[];
  /** Requests share cached prefixes only with requests of the same salt. 1–256 bytes of UTF-8. */
  readonly cacheSalt?: string;
  /** Reserved: only 0. */
  readonly priority?: number;
  /** Seconds on the engine's clock. */
  readonly arrivalTime: number;
  /** Return the logits of every prompt position, 2^30 at most, and generate nothing. Needs `n` = 1. */
  readonly logits?: boolean;
  /** Every token but the first depends on what the caller makes of the one before: none is computed ahead. */
  readonly lockstep?: boolean;
}

/** What a request must fit into, in tokens. */
export interface RequestLimits {
  readonly maxModelLen: number;
  /** Tokens that the whole KV pool holds. */
  readonly poolTokens: number;
  readonly vocabSize: number;
}

/**
 * Checks everything that could fail later.
 * @returns how many tokens the request may generate: `maxTokens`, or what context and pool leave.
 * @throws InvalidRequestError naming the parameter; ContextLengthError when it can never fit.
 */
export function checkRequest(request: EngineRequest, limits: RequestLimits): number {
  const { promptTokenIds, sampling, cacheSalt } = request;
  if (promptTokenIds.length === 0)
    throw new InvalidRequestError("prompt", "the prompt has no tokens", "empty_prompt");
  checkTokens("prompt", promptTokenIds, limits.vocabSize);
  for (const word of request.badWordTokens ?? []) {
    if (word.length === 0) throw new InvalidRequestError("badWords", "a bad word has no tokens");
    checkTokens("badWords", word, limits.vocabSize);
  }
  if (cacheSalt !== undefined && (cacheSalt === "" || Buffer.byteLength(cacheSalt) > 256))
    throw new InvalidRequestError("cacheSalt", "cacheSalt must have 1 to 256 bytes");
  if ((request.priority ?? 0) !== 0)
    throw new InvalidRequestError("priority", "priority can only be 0", "unsupported_parameter");
  if (request.logits && sampling.n > 1)
    throw new InvalidRequestError("n", "n must be 1 when the prompt's logits are returned");
  const mostRows = Math.floor(MAX_LOGITS / limits.vocabSize);
  if (request.logits && promptTokenIds.length > mostRows) {
    const message = `the prompt has ${promptTokenIds.length} tokens, logits are returned of ${mostRows} at most`;
    throw new ContextLengthError("prompt", message, promptTokenIds.length, mostRows);
  }
  return outputLimit(request, limits);
}

/**
 * The end-of-sequence and stop ids that `minTokens` forbids at first.
 * @throws InvalidRequestError when nothing else is allowed.
 */
export function bannedTokens(
  { minTokens, ignoreEos, stopTokenIds, allowedTokenIds }: ResolvedSamplingParams,
  eosTokenIds: readonly number[],
): readonly number[] {
  if (minTokens === 0) return [];
  const banned = new Set(ignoreEos ? stopTokenIds : [...eosTokenIds, ...stopTokenIds]);
  if (allowedTokenIds?.every((id) => banned.has(id))) {
    const message = "allowedTokenIds are all end or stop tokens, which minTokens forbids";
    throw new InvalidRequestError("allowedTokenIds", message);
  }
  return [...banned];
}

/** What the runner applies for a completion with this seed. */
export function slotSampling(
  { sampling, promptTokenIds, badWordTokens = [] }: EngineRequest,
  seed: bigint,
  bannedTokens: readonly number[],
): SlotSampling {
  const { temperature, topP, topK, minP, logitBias, allowedTokenIds } = sampling;
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = sampling;
  const bannedUntil = promptTokenIds.length + sampling.minTokens;
  return {
    ...{ temperature, topP, topK, minP, repetitionPenalty, presencePenalty, frequencyPenalty },
    ...{ seed, logitBias, bannedTokens, bannedUntil, allowedTokenIds, badWords: badWordTokens },
  };
}

function outputLimit(request: EngineRequest, limits: RequestLimits): number {
  const { sampling, promptTokenIds } = request;
  const limit = Math.min(limits.maxModelLen, limits.poolTokens);
  const where = limits.poolTokens < limits.maxModelLen ? "the KV cache" : "the context";
  const wanted = request.logits ? 0 : (sampling.maxTokens ?? 1);
  const least = promptTokenIds.length + (request.logits ? 0 : 1);
  if (least > limit) {
    const message = `the prompt has ${promptTokenIds.length} tokens, ${where} holds ${limit}, output included`;
    throw new ContextLengthError("prompt", message, least, limit);
  }
  const total = promptTokenIds.length + wanted;
  if (total > limit) {
    const message = `${promptTokenIds.length} prompt tokens and maxTokens ${wanted} exceed the ${limit} tokens of ${where}`;
    throw new ContextLengthError("maxTokens", message, total, limit);
  }
  const maxTokens = request.logits ? 0 : (sampling.maxTokens ?? limit - promptTokenIds.length);
  if (!request.logits && sampling.minTokens > maxTokens) {
    const message = `minTokens ${sampling.minTokens} is above the ${maxTokens} tokens that ${where} leaves`;
    throw new InvalidRequestError("minTokens", message);
  }
  return maxTokens;
}

/** @throws InvalidRequestError naming the parameter, unless each is an integer in [0, vocabSize). */
export function checkTokens(param: string, tokens: readonly number[], vocabSize: number): void {
  for (const token of tokens) {
    if (!Number.isInteger(token) || token < 0 || token >= vocabSize) {
      const message = `${param}: ${token} is not a token id, an integer from 0 to ${vocabSize - 1}`;
      throw new InvalidRequestError(param, message, "invalid_token_id");
    }
  }
}
