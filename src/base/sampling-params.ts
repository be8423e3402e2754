import { InvalidRequestError } from "./errors.ts";
import {
  type ResolvedOutputs,
  type ResponseFormat,
  type StructuredOutputs,
  structuredOutputs,
} from "./structured-outputs.ts";

/**
 * The parameters of a prompt's continuation: vLLM's `SamplingParams` in camelCase. Every field is honoured or refused with
 * `InvalidRequestError`. A field left out takes the model's `generation_config.json` value, then the default below.
 */
export interface SamplingParams {
  /** Completions per prompt, 1–128; 1 when greedy. Default 1. */
  n?: number;
  /** Logits are divided by this; 0 is greedy. 0–2, values in (0, 0.01) act as 0.01. Default 1. */
  temperature?: number;
  /** Keep the most likely tokens whose probabilities sum to this. (0, 1], default 1 (off). */
  topP?: number;
  /** Keep the k most likely tokens; 0 or −1 is off. Default 0. */
  topK?: number;
  /** Keep tokens at least this fraction as likely as the likeliest. [0, 1], default 0 (off). */
  minP?: number;
  /** Subtracted from the logits of tokens already generated. [−2, 2], default 0. */
  presencePenalty?: number;
  /** Subtracted, times the count, from the logits of tokens already generated. [−2, 2], default 0. */
  frequencyPenalty?: number;
  /** Divides positive and multiplies negative logits of tokens in prompt or output (Keskar 2019). [0.001, 1000], default 1. */
  repetitionPenalty?: number;
  /** Same seed, same tokens, whatever else is in the batch. 64-bit integer; −1 or null: chosen by the engine. */
  seed?: number | bigint | null;
  /** Up to 16 strings that end the text, each 1–1024 characters. */
  stop?: string | readonly string[];
  /** Up to 512 token ids that end the text, besides the model's own end-of-sequence ids. */
  stopTokenIds?: readonly number[];
  /** Keep the stop string in the text. Default false. */
  includeStopStrInOutput?: boolean;
  /** Go on after an end-of-sequence token. Default false. */
  ignoreEos?: boolean;
  /** End-of-sequence and stop ids cannot be drawn before this many tokens. Default 0. */
  minTokens?: number;
  /** At most this many tokens; null: as many as the context holds. Default 16, or what the context holds if that is less. */
  maxTokens?: number | null;
  /** Log-probabilities of this many likeliest tokens (and the drawn one) at each step; −1: all. Default none. */
  logprobs?: number | null;
  /** The same for each prompt token but the first. Such a request does not read the prefix cache. Default none. */
  promptLogprobs?: number | null;
  /** Added to the logits of these token ids; each value in [−100, 100], at most 1,024 of them. */
  logitBias?: Readonly<Record<number, number>> | null;
  /** Only these token ids can be drawn. */
  allowedTokenIds?: readonly number[] | null;
  /** Words that must not be generated. */
  badWords?: readonly string[] | null;
  /** Turn tokens into text. Without it `text` is empty and stop strings are refused. Default true. */
  detokenize?: boolean;
  /** Leave special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean;
  /** Only true: the tokenizers that Octavo loads put no spaces between special tokens that could be removed. */
  spacesBetweenSpecialTokens?: boolean;
  /** A grammar that the whole output keeps to. Its output is complete if `finishReason` is `stop`. */
  structuredOutputs?: StructuredOutputs | null;
  /** The same in the form of OpenAI's `response_format`, or a zod schema. Not together with `structuredOutputs`. */
  responseFormat?: ResponseFormat | null;
  /** The form of what `stream` yields: `delta` (the default there), `cumulative`, or `finalOnly`. */
  outputKind?: OutputKind;
}

/** Most entries that bias and bans of one request may take together. */
export const MAX_LOGIT_EDITS = 2048;
/** Most tokens that a request's bad words may come to, each word with its length. */
export const MAX_BAD_WORD_TOKENS = 2048;

/** The form of what a stream yields: new text, all text so far, or all text once at the end. */
export type OutputKind = "delta" | "cumulative" | "finalOnly";

/** `SamplingParams` after defaults and validation: nothing is optional, nothing contradicts. */
export interface ResolvedSamplingParams {
  readonly n: number;
  readonly temperature: number;
  readonly topP: number;
  readonly topK: number;
  readonly minP: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly repetitionPenalty: number;
  /** Unsigned 64-bit; undefined: the engine chooses. */
  readonly seed: bigint | undefined;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly includeStopStrInOutput: boolean;
  readonly ignoreEos: boolean;
  readonly minTokens: number;
  /** Undefined: as many as the context holds. */
  readonly maxTokens: number | undefined;
  /** `maxTokens` was left out, so that the end of the context may come first. */
  readonly isMaxTokensDefault: boolean;
  /** Number of top entries; undefined: none asked for. */
  readonly logprobs: number | undefined;
  readonly promptLogprobs: number | undefined;
  readonly logitBias: readonly (readonly [token: number, bias: number])[];
  readonly allowedTokenIds: readonly number[] | undefined;
  readonly badWords: readonly string[];
  readonly detokenize: boolean;
  readonly skipSpecialTokens: boolean;
  readonly outputKind: OutputKind | undefined;
  /** With one of the kinds of grammar. */
  readonly structuredOutputs?: ResolvedOutputs | undefined;
}

/** The model's and the engine's limits that parameters are checked against. */
export interface SamplingLimits {
  /** Width of the logits: every token id must be below it. */
  readonly vocabSize: number;
  /** Greatest `logprobs`; −1: no limit. */
  readonly maxLogprobs: number;
}

const MAX_STOP_TOKEN_IDS = 512;
const MAX_LOGIT_BIASES = 1024;

const FIELDS: ReadonlySet<string> = new Set([
  ...["n", "temperature", "topP", "topK", "minP", "presencePenalty", "frequencyPenalty", "repetitionPenalty"],
  ...["seed", "stop", "stopTokenIds", "includeStopStrInOutput", "ignoreEos", "minTokens", "maxTokens"],
  ...["logprobs", "promptLogprobs", "logitBias", "allowedTokenIds", "badWords", "detokenize"],
  ...["skipSpecialTokens", "spacesBetweenSpecialTokens", "outputKind", "structuredOutputs", "responseFormat"],
]);

/**
 * Applies defaults and checks every field and their combinations.
 * @throws InvalidRequestError naming the field.
 */
export function resolveSamplingParams(
  params: SamplingParams,
  limits: SamplingLimits,
  defaults: SamplingParams = {},
): ResolvedSamplingParams {
  for (const key of Object.keys(params)) {
    if (!FIELDS.has(key)) throw new InvalidRequestError(key, `unknown sampling parameter "${key}"`);
  }
  const given: SamplingParams = { ...defaults };
  for (const [key, value] of Object.entries(params)) {
    if (value !== undefined) Object.assign(given, { [key]: value });
  }
  const ids = (param: string, list: readonly number[] | null | undefined, most: number) =>
    tokenIds(param, list, limits.vocabSize, most);

  const rawTemperature = number("temperature", given.temperature ?? 1, 0, 2);
  const greedy = rawTemperature < 1e-5;
  const n = integer("n", given.n ?? 1, 1, 128);
  if (greedy && n > 1)
    throw new InvalidRequestError("n", "n must be 1 when temperature is 0: all would be equal");

  const topP = number("topP", given.topP ?? 1, 0, 1);
  if (topP === 0) throw new InvalidRequestError("topP", "topP must be greater than 0");
  // Beyond this range logits overflow in float32.
  const repetitionPenalty = number("repetitionPenalty", given.repetitionPenalty ?? 1, 0.001, 1000);
  const topK = Math.max(0, integer("topK", given.topK ?? 0, -1, 2 ** 31 - 1));
  const minP = number("minP", given.minP ?? 0, 0, 1);

  const maxTokens = given.maxTokens === undefined ? 16 : given.maxTokens;
  if (maxTokens !== null) integer("maxTokens", maxTokens, 1, Number.MAX_SAFE_INTEGER);
  const minTokens = integer("minTokens", given.minTokens ?? 0, 0, Number.MAX_SAFE_INTEGER);
  if (maxTokens !== null && minTokens > maxTokens)
    throw new InvalidRequestError("minTokens", `minTokens ${minTokens} is above maxTokens ${maxTokens}`);

  const detokenize = flag("detokenize", given.detokenize ?? true);
  const stop = stopStrings(given.stop);
  if (stop.length > 0 && !detokenize)
    throw new InvalidRequestError("stop", "stop strings need detokenize: true");
  if (!flag("spacesBetweenSpecialTokens", given.spacesBetweenSpecialTokens ?? true)) {
    const message = "spacesBetweenSpecialTokens: false is not supported by these tokenizers";
    throw new InvalidRequestError("spacesBetweenSpecialTokens", message, "unsupported_parameter");
  }
  const allowed = ids("allowedTokenIds", given.allowedTokenIds, limits.vocabSize);
  if (allowed?.length === 0)
    throw new InvalidRequestError("allowedTokenIds", "allowedTokenIds must not be empty");

  return Object.freeze({
    n,
    temperature: greedy ? 0 : Math.max(rawTemperature, 0.01),
    topP: greedy ? 1 : topP,
    topK: greedy ? 0 : topK,
    minP: greedy ? 0 : minP,
    presencePenalty: number("presencePenalty", given.presencePenalty ?? 0, -2, 2),
    frequencyPenalty: number("frequencyPenalty", given.frequencyPenalty ?? 0, -2, 2),
    repetitionPenalty,
    seed: seedOf(given.seed),
    stop,
    stopTokenIds: ids("stopTokenIds", given.stopTokenIds, MAX_STOP_TOKEN_IDS) ?? [],
    includeStopStrInOutput: flag("includeStopStrInOutput", given.includeStopStrInOutput ?? false),
    ignoreEos: flag("ignoreEos", given.ignoreEos ?? false),
    minTokens,
    maxTokens: maxTokens ?? undefined,
    isMaxTokensDefault: given.maxTokens === undefined,
    logprobs: topCount("logprobs", given.logprobs, limits),
    promptLogprobs: topCount("promptLogprobs", given.promptLogprobs, limits),
    logitBias: logitBias(given.logitBias, limits.vocabSize),
    allowedTokenIds: allowed,
    badWords: badWords(given.badWords),
    detokenize,
    skipSpecialTokens: flag("skipSpecialTokens", given.skipSpecialTokens ?? true),
    outputKind: outputKind(given.outputKind),
    structuredOutputs: structuredOutputs(given.structuredOutputs, given.responseFormat),
  });
}

function number(param: string, value: unknown, min: number, max: number): number {
  if (typeof value !== "number" || !Number.isFinite(value) || value < min || value > max) {
    throw new InvalidRequestError(
      param,
      `${param} must be a number from ${min} to ${max}, not ${show(value)}`,
    );
  }
  return value;
}

function integer(param: string, value: unknown, min: number, max: number): number {
  if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max) {
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`;
    throw new InvalidRequestError(param, `${param} must be an integer ${range}, not ${show(value)}`);
  }
  return value;
}

function flag(param: string, value: unknown): boolean {
  if (typeof value !== "boolean")
    throw new InvalidRequestError(param, `${param} must be true or false, not ${show(value)}`);
  return value;
}

function tokenIds(
  param: string,
  list: unknown,
  vocabSize: number,
  most: number,
): readonly number[] | undefined {
  if (list === undefined || list === null) return undefined;
  if (!Array.isArray(list) || list.length > most)
    throw new InvalidRequestError(param, `${param} must be a list of at most ${most} token ids`);
  for (const id of list) integer(param, id, 0, vocabSize - 1);
  return [...new Set(list as number[])];
}

function stopStrings(stop: SamplingParams["stop"] | null): readonly string[] {
  if (stop === undefined || stop === null) return [];
  const list: readonly unknown[] = typeof stop === "string" ? [stop] : stop;
  if (!Array.isArray(list) || list.length > 16)
    throw new InvalidRequestError("stop", "stop must be a string or a list of at most 16 strings");
  for (const entry of list) {
    if (typeof entry !== "string" || entry.length === 0 || entry.length > 1024)
      throw new InvalidRequestError("stop", "each stop string must have 1 to 1024 characters");
  }
  return list as string[];
}

function badWords(words: unknown): readonly string[] {
  if (words === undefined || words === null) return [];
  if (!Array.isArray(words) || words.length > 256)
    throw new InvalidRequestError("badWords", "badWords must be a list of at most 256 words");
  for (const word of words) {
    if (typeof word !== "string" || word.trim().length === 0 || word.length > 256)
      throw new InvalidRequestError(
        "badWords",
        "each bad word must have 1 to 256 characters, not only spaces",
      );
  }
  return words as string[];
}

function logitBias(bias: unknown, vocabSize: number): readonly (readonly [number, number])[] {
  if (bias === undefined || bias === null) return [];
  if (typeof bias !== "object" || Array.isArray(bias) || bias instanceof Map)
    throw new InvalidRequestError("logitBias", "logitBias must map token ids to numbers");
  const entries = Object.entries(bias);
  if (entries.length > MAX_LOGIT_BIASES)
    throw new InvalidRequestError(
      "logitBias",
      `logitBias has ${entries.length} entries, at most ${MAX_LOGIT_BIASES} are allowed`,
    );
  return entries.map(([key, value]) => {
    if (!/^(?:0|[1-9]\d*)$/.test(key))
      throw new InvalidRequestError("logitBias", `logitBias: ${show(key)} is not a token id`);
    return [
      integer("logitBias", Number(key), 0, vocabSize - 1),
      number("logitBias", value, -100, 100),
    ] as const;
  });
}

function topCount(param: string, value: unknown, limits: SamplingLimits): number | undefined {
  if (value === undefined || value === null) return undefined;
  const limit = limits.maxLogprobs === -1 ? limits.vocabSize : limits.maxLogprobs;
  const count = integer(param, value, limits.maxLogprobs === -1 ? -1 : 0, limit);
  return count === -1 ? limits.vocabSize : Math.min(count, limits.vocabSize);
}

function seedOf(seed: unknown): bigint | undefined {
  if (seed === undefined || seed === null || seed === -1 || seed === -1n) return undefined;
  if (typeof seed === "number") integer("seed", seed, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
  else if (typeof seed !== "bigint")
    throw new InvalidRequestError("seed", `seed must be an integer, not ${show(seed)}`);
  const value = BigInt(seed);
  if (value < -(2n ** 63n) || value >= 2n ** 63n)
    throw new InvalidRequestError("seed", "seed must be a signed 64-bit integer");
  return BigInt.asUintN(64, value);
}

function outputKind(kind: unknown): OutputKind | undefined {
  if (kind === undefined || kind === "delta" || kind === "cumulative" || kind === "finalOnly") return kind;
  throw new InvalidRequestError(
    "outputKind",
    `outputKind must be delta, cumulative or finalOnly, not ${show(kind)}`,
  );
}

function show(value: unknown): string {
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}
