import { ApiError, invalidValue } from "../errors.ts";

const MAX_PROMPTS = 128;

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

/**
 * The prompts of `string | string[] | number[] | number[][]`.
 * @throws ApiError `empty_prompt`, `invalid_token_id`, or `invalid_value` for anything else.
 */
export function parsePrompts(value: unknown): readonly PromptInput[] {
  if (typeof value === "string") return [nonEmpty(value)];
  if (!Array.isArray(value))
    throw invalidValue("prompt", "prompt must be text, token ids, or a list of them");
  nonEmpty(value);
  if (value.every((entry) => typeof entry === "string")) return atMost(value).map(nonEmpty);
  if (value.every(Array.isArray)) return atMost(value).map((list) => tokenIds(nonEmpty(list)));
  if (value.some((entry) => Array.isArray(entry)) || value.every((entry) => typeof entry === "object"))
    throw invalidValue("prompt", "prompt mixes token ids, texts and lists");
  return [tokenIds(value)];
}

/**
 * A list of token ids; the engine checks that the model has them.
 * @throws ApiError `invalid_token_id`.
 */
export function tokenIds(list: readonly unknown[], field = "prompt"): readonly number[] {
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
