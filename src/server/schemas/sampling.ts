import { z } from "zod";
import type { SamplingParams } from "../../base/sampling-params.ts";

/**
 * The JSON type of one sampling field and the field of `SamplingParams` it sets. The engine checks ranges, and the
 * types that are unknown here.
 */
interface SamplingField {
  readonly param: keyof SamplingParams;
  readonly type: z.ZodType;
}

const field = (param: keyof SamplingParams, type: z.ZodType): SamplingField => ({ param, type });
/** Longest list of a sampling field: more than any vocabulary has. */
const MAX_ENTRIES = 2 ** 19;
/** Lists are the engine's to check: it looks at their lengths before their items. No long one is passed on to it. */
const unchecked = () =>
  z
    .unknown()
    .refine(
      (value) => !Array.isArray(value) || value.length <= MAX_ENTRIES,
      `must have at most ${MAX_ENTRIES} entries`,
    );
const list = (items: "integer" | "string") => unchecked().meta({ type: "array", items: { type: items } });
const tokenIds = list("integer");

const STOP_DOCUMENT = {
  anyOf: [{ type: "string" }, { type: "array", items: { type: "string" }, maxItems: 16 }],
};

/** The sampling fields that both endpoints share, by their names in requests. */
const SAMPLING_FIELDS: Readonly<Record<string, SamplingField>> = {
  n: field("n", z.int()),
  temperature: field("temperature", z.number()),
  top_p: field("topP", z.number()),
  top_k: field("topK", z.int()),
  min_p: field("minP", z.number()),
  presence_penalty: field("presencePenalty", z.number()),
  frequency_penalty: field("frequencyPenalty", z.number()),
  repetition_penalty: field("repetitionPenalty", z.number()),
  seed: field("seed", unchecked().meta({ type: "integer", description: "64 bits." })),
  stop: field("stop", unchecked().meta(STOP_DOCUMENT)),
  stop_token_ids: field("stopTokenIds", tokenIds),
  include_stop_str_in_output: field("includeStopStrInOutput", z.boolean()),
  ignore_eos: field("ignoreEos", z.boolean()),
  min_tokens: field("minTokens", z.int()),
  max_tokens: field("maxTokens", z.int()),
  prompt_logprobs: field("promptLogprobs", z.int()),
  logit_bias: field(
    "logitBias",
    unchecked().meta({ type: "object", additionalProperties: { type: "number" } }),
  ),
  allowed_token_ids: field("allowedTokenIds", tokenIds),
  bad_words: field("badWords", list("string")),
  skip_special_tokens: field("skipSpecialTokens", z.boolean()),
  spaces_between_special_tokens: field("spacesBetweenSpecialTokens", z.boolean()),
};

/** zod's shape of the table. */
export const samplingShape: Readonly<Record<string, z.ZodType>> = Object.fromEntries(
  Object.entries(SAMPLING_FIELDS).map(([name, { type }]) => [name, type.nullish()]),
);

/** The sampling parameters among a body's fields; null counts as left out. */
export function samplingParams(body: Readonly<Record<string, unknown>>): SamplingParams {
  const given = Object.entries(SAMPLING_FIELDS).flatMap(([name, { param }]) => {
    const value = body[name];
    return value === null || value === undefined ? [] : [[param, value] as const];
  });
  return Object.fromEntries(given);
}

/** Names in requests of the other parameters that the engine's errors speak of. */
const OTHER_NAMES: Readonly<Record<string, string>> = {
  promptTokenIds: "prompt",
  tokenIds: "tokens",
  cacheSalt: "cache_salt",
  chatTemplateKwargs: "chat_template_kwargs",
  addGenerationPrompt: "add_generation_prompt",
  continueFinalMessage: "continue_final_message",
  truncatePromptTokens: "truncate_prompt_tokens",
  addSpecialTokens: "add_special_tokens",
  structuredOutputs: "structured_outputs",
  responseFormat: "response_format",
  jsonObject: "json_object",
  disableAnyWhitespace: "disable_any_whitespace",
};

const API_NAMES = new Map([
  ...Object.entries(SAMPLING_FIELDS).map(([name, { param }]) => [param as string, name] as const),
  ...Object.entries(OTHER_NAMES),
]);
const ENGINE_NAME = /\b[a-z]+(?:[A-Z][a-z]*)+\b/g;

/** The name in requests of a parameter that the engine names. */
export function apiName(param: string): string {
  return API_NAMES.get(param) ?? param;
}

/** A message of the engine in the names of requests. */
export function apiMessage(message: string): string {
  return message.replace(ENGINE_NAME, apiName);
}
