import type { Pooling } from "../base/embedding.ts";
import { ContextLengthError, InvalidRequestError, NoTokenAllowedError } from "../base/errors.ts";
import type { ResolvedSamplingParams } from "../base/sampling-params.ts";
import type { SlotSampling } from "../runner/types.ts";
import type { ThinkingLimit } from "./thinking-matcher.ts";

/** Logits that a request may ask for, in elements: 4 GiB of float32, the most that one typed array holds. */
const MAX_LOGITS = 2 ** 30;

export type TokenIds = readonly number[] | Int32Array<ArrayBuffer>;

/** A prompt to continue, as tokens, before it is checked. */
export interface RequestDraft {
  /** Unique among the engine's unfinished requests. */
  readonly id: string;
  readonly promptTokenIds: TokenIds;
  readonly sampling: ResolvedSamplingParams;
  /** `sampling.badWords` as tokens; every spelling of a word is an entry. Default none. */
  readonly badWordTokens?: readonly (readonly number[])[];
  /** Requests share cached prefixes only with requests of the same salt. 1–256 bytes of UTF-8. Default none. */
  readonly cacheSalt?: string | undefined;
  /** Seconds on the engine's clock. */
  readonly arrivalTime: number;
  /** Return the logits of every prompt position, 2^30 at most, and generate nothing. Needs `n` = 1. Default false. */
  readonly logits?: boolean;
  /**
   * Return one vector of the prompt's hidden states after the final norm, that of the last token or the mean of all, and
   * generate nothing. Needs `n` = 1. Default none.
   */
  readonly pooling?: Pooling | undefined;
  /** EBNF with a rule `root` that every completion keeps to. Default none. */
  readonly grammar?: string | undefined;
  /** Tokens that the grammar asks for as such. Default none. */
  readonly markers?: readonly number[] | undefined;
  /** Tokens that every completion may think for. Default no limit. */
  readonly thinking?: ThinkingLimit | undefined;
  /** Every token but the first depends on what the caller makes of the one before: none is computed ahead. Default false. */
  readonly lockstep?: boolean;
}

declare const CHECKED: unique symbol;

/** A request that `checkRequest` has passed, which alone makes them. Plain data: it may cross threads. */
export interface EngineRequest extends RequestDraft {
  readonly [CHECKED]: true;
  /** At least one; each in [0, vocabSize). */
  readonly promptTokenIds: Int32Array<ArrayBuffer>;
  readonly badWordTokens: readonly (readonly number[])[];
  /** Empty without a salt. */
  readonly cacheSalt: string;
  readonly logits: boolean;
  readonly lockstep: boolean;
  /** Tokens to generate at most: `sampling.maxTokens`, or what context and pool leave; 0 with `logits` or `pooling`. */
  readonly maxTokens: number;
  /** The end-of-sequence and stop ids that `minTokens` forbids at first. */
  readonly bannedTokens: readonly number[];
}

/** Tokens of prompt and output that one sequence can have. */
export function roomOf({ maxModelLen, poolTokens }: RequestLimits): number {
  return Math.min(maxModelLen, poolTokens);
}

/** The bounds that a request must fit into, in tokens. */
export interface RequestLimits {
  readonly maxModelLen: number;
  /** Tokens that the whole KV pool holds. */
  readonly poolTokens: number;
  readonly vocabSize: number;
  readonly eosTokenIds: readonly number[];
}

/**
 * Checks everything that could fail later, where a request enters: behind this nothing is checked again.
 * @throws InvalidRequestError naming the parameter; ContextLengthError when the request can never fit.
 */
export function checkRequest(draft: RequestDraft, limits: RequestLimits): EngineRequest {
  const { sampling, cacheSalt, logits = false, pooling, lockstep = false, badWordTokens = [] } = draft;
  if (draft.promptTokenIds.length === 0)
    throw new InvalidRequestError("prompt", "the prompt has no tokens", "empty_prompt");
  // First, so that the cost of the other checks is bounded.
  const isRead = logits || pooling !== undefined;
  const maxTokens = outputLimit(draft.promptTokenIds.length, sampling, isRead, limits);
  const promptTokenIds = checkTokens("prompt", draft.promptTokenIds, limits.vocabSize);
  for (const word of badWordTokens) {
    if (word.length === 0) throw new InvalidRequestError("badWords", "a bad word has no tokens");
    checkTokens("badWords", word, limits.vocabSize);
  }
  if (cacheSalt !== undefined && (cacheSalt === "" || Buffer.byteLength(cacheSalt) > 256))
    throw new InvalidRequestError("cacheSalt", "cacheSalt must have 1 to 256 bytes");
  if (isRead && sampling.n > 1)
    throw new InvalidRequestError("n", "n must be 1 when the prompt's logits or hidden states are returned");
  const mostRows = Math.floor(MAX_LOGITS / limits.vocabSize);
  if (logits && promptTokenIds.length > mostRows) {
    const message = `the prompt has ${promptTokenIds.length} tokens, logits are returned of ${mostRows} at most`;
    throw new ContextLengthError("prompt", message, promptTokenIds.length, mostRows);
  }
  if (logits && draft.grammar !== undefined)
    throw new InvalidRequestError(
      "structuredOutputs",
      "logits are returned of the prompt: there is no output",
    );
  const bannedTokens = bannedAtFirst(sampling, limits.eosTokenIds);
  if (!isRead) checkDrawable(sampling.allowedTokenIds, bannedTokens, badWordTokens, limits.vocabSize);
  const checked = { ...draft, promptTokenIds, cacheSalt: cacheSalt ?? "", logits, lockstep, badWordTokens };
  return { ...checked, maxTokens, bannedTokens } as unknown as EngineRequest;
}

/** @throws InvalidRequestError naming the parameter, unless each is an integer in [0, vocabSize). */
export function checkTokens(param: string, tokens: TokenIds, vocabSize: number): Int32Array<ArrayBuffer> {
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i]!;
    if (!Number.isInteger(token) || token < 0 || token >= vocabSize) {
      const message = `${param}: ${token} is not a token id, an integer from 0 to ${vocabSize - 1}`;
      throw new InvalidRequestError(param, message, "invalid_token_id");
    }
  }
  return tokens instanceof Int32Array ? tokens : new Int32Array(tokens);
}

/** A matcher says which tokens may be drawn. */
function isMasked({ grammar, thinking }: EngineRequest): boolean {
  return grammar !== undefined || thinking !== undefined;
}

/** The sampling parameters of a completion with this seed, as the runner applies them. */
export function slotSampling(request: EngineRequest, seed: bigint): SlotSampling {
  const { sampling, bannedTokens, badWordTokens, promptTokenIds } = request;
  const { temperature, topP, topK, minP, logitBias, allowedTokenIds } = sampling;
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = sampling;
  const bannedUntil = promptTokenIds.length + sampling.minTokens;
  return {
    ...{ temperature, topP, topK, minP, repetitionPenalty, presencePenalty, frequencyPenalty },
    ...{ seed, logitBias, bannedTokens, bannedUntil, badWords: badWordTokens },
    // The masks of a grammar's matcher have no others.
    allowedTokenIds: isMasked(request) ? undefined : allowedTokenIds,
    ...(isMasked(request) && { masked: true }),
  };
}

function bannedAtFirst(
  { minTokens, ignoreEos, stopTokenIds }: ResolvedSamplingParams,
  eosTokenIds: readonly number[],
): readonly number[] {
  if (minTokens === 0) return [];
  return [...new Set(ignoreEos ? stopTokenIds : [...eosTokenIds, ...stopTokenIds])];
}

/** Refuses limits that contradict each other whatever is generated: a word of one token is banned everywhere. */
function checkDrawable(
  allowed: readonly number[] | undefined,
  bannedTokens: readonly number[],
  badWordTokens: readonly (readonly number[])[],
  vocabSize: number,
): void {
  const badTokens = new Set(badWordTokens.flatMap((word) => (word.length === 1 ? word : [])));
  const banned = new Set([...badTokens, ...bannedTokens]);
  const leavesNone = (set: ReadonlySet<number>) =>
    allowed ? allowed.every((id) => set.has(id)) : set.size === vocabSize;
  if (!leavesNone(banned)) return;
  const what = allowed ? "none of allowedTokenIds" : "no token";
  const by = [
    badTokens.size > 0 && "badWords",
    !leavesNone(badTokens) && "minTokens, which forbids end and stop ids",
  ];
  const message = `${what} is left by ${by.filter(Boolean).join(" and ")}`;
  throw new NoTokenAllowedError(
    allowed ? "allowedTokenIds" : badTokens.size > 0 ? "badWords" : "minTokens",
    message,
  );
}

function outputLimit(
  promptLength: number,
  { maxTokens, isMaxTokensDefault, minTokens }: ResolvedSamplingParams,
  isRead: boolean,
  limits: RequestLimits,
): number {
  const limit = roomOf(limits);
  const where = limits.poolTokens < limits.maxModelLen ? "the KV cache" : "the context";
  const least = promptLength + (isRead ? 0 : 1);
  if (least > limit) {
    const message = `the prompt has ${promptLength} tokens, ${where} holds ${limit}, output included`;
    throw new ContextLengthError("prompt", message, least, limit);
  }
  if (isRead) return 0;
  const rest = limit - promptLength;
  const most = isMaxTokensDefault ? Math.min(maxTokens ?? rest, rest) : (maxTokens ?? rest);
  if (promptLength + most > limit) {
    const message = `${promptLength} prompt tokens and maxTokens ${most} exceed the ${limit} tokens of ${where}`;
    throw new ContextLengthError("maxTokens", message, promptLength + most, limit);
  }
  if (minTokens > most) {
    const message = `minTokens ${minTokens} is above the ${most} tokens that ${where} leaves`;
    throw new InvalidRequestError("minTokens", message);
  }
  return most;
}
