import type { Prompt } from "../../tokenizer/prompt-encoder.ts";
import { ApiError, invalidValue } from "../errors.ts";

const MAX_PROMPTS = 128;
/** Longest list of token ids other than a prompt: more than any vocabulary has. */
const MAX_TOKEN_IDS = 2 ** 19;

/** JSON schema of `prompt`, for the OpenAPI document; `parsePrompts` does the checking, with a code for each mistake. */
export const PROMPT_DOCUMENT = {
  description: `A text, its token ids, or a list of at most ${MAX_PROMPTS} of either.`,
  anyOf: [
    { type: "string" },
    { type: "array", items: { type: "string" } },
    { type: "array", items: { type: "integer" } },
    { type: "array", items: { type: "array", items: { type: "integer" } } },
  ],
};

/** One prompt of a request: text or token ids. */
export type PromptInput = string | readonly number[];

/** The same in the engine's terms. */
export function promptOf(prompt: PromptInput): Prompt {
  return typeof prompt === "string" ? { prompt } : { promptTokenIds: prompt };
}

/**
 * The prompts of `string | string[] | number[] | number[][]`.
 * @param keep of each list of token ids the last ones; undefined: all.
 * @throws ApiError `empty_prompt`, `invalid_token_id`, `context_length_exceeded`, or `invalid_value` for anything else.
 */
export function parsePrompts(
  value: unknown,
  maxTokens: number,
  keep: number | undefined,
): readonly PromptInput[] {
  const cut = (list: readonly unknown[]) => promptTokens(nonEmpty(list), maxTokens, keep);
  if (typeof value === "string") return [nonEmpty(value)];
  if (!Array.isArray(value))
    throw invalidValue("prompt", "prompt must be text, token ids, or a list of them");
  nonEmpty(value);
  if (value.every((entry) => typeof entry === "string")) return atMost(value).map(nonEmpty);
  if (value.every(Array.isArray)) return atMost(value).map(cut);
  if (value.some((entry) => Array.isArray(entry)) || value.every((entry) => typeof entry === "object"))
    throw invalidValue("prompt", "prompt mixes token ids, texts and lists");
  return [cut(value)];
}

/** Cut and refused here by its length, a list costs no other thread anything. The engine counts the output as well. */
function promptTokens(
  list: readonly unknown[],
  maxTokens: number,
  keep: number | undefined,
): readonly number[] {
  const kept = keep === undefined ? list : list.slice(-(keep === -1 ? maxTokens : keep));
  if (kept.length <= maxTokens) return tokenIds(kept);
  const message = `the prompt has ${kept.length} tokens, the context holds ${maxTokens}, output included`;
  throw invalidValue("prompt", message, "context_length_exceeded");
}

/** A list of token ids that is no prompt. @throws ApiError `invalid_token_id`, or `invalid_value` if it is too long. */
export function boundedTokenIds(list: readonly unknown[], field: string): readonly number[] {
  if (list.length <= MAX_TOKEN_IDS) return tokenIds(list, field);
  throw invalidValue(field, `${field} has ${list.length} entries, at most ${MAX_TOKEN_IDS} are allowed`);
}

/**
 * A list of token ids; the engine checks that the model has them.
 * @throws ApiError `invalid_token_id`.
 */
function tokenIds(list: readonly unknown[], field = "prompt"): readonly number[] {
  const wrong = list.find((id) => !Number.isSafeInteger(id) || (id as number) < 0);
  if (wrong === undefined) return list as readonly number[];
  const shown = typeof wrong === "number" ? String(wrong) : `a ${typeof wrong}`;
  throw new ApiError(400, "invalid_token_id", `${field}: ${shown} is not a token id`, field);
}

function nonEmpty<T extends { readonly length: number }>(value: T): T {
  if (value.length === 0) throw invalidValue("prompt", "the prompt is empty", "empty_prompt");
  return value;
}

function atMost<T>(list: readonly T[]): readonly T[] {
  if (list.length <= MAX_PROMPTS) return list;
  throw invalidValue("prompt", `${list.length} prompts, at most ${MAX_PROMPTS} are allowed`);
}
