import { z } from "zod";
import type { SubmitOptions } from "../../async/async-llm.ts";
import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import { type ApiError, invalidValue, unsupported } from "../errors.ts";
import { samplingShape } from "./sampling.ts";
import { structuredShape } from "./structured.ts";
import { INERT_FIELDS, REFUSED_FIELDS, refusedField } from "./unsupported-fields.ts";

export const MODEL = z
  .string()
  .nullish()
  .meta({ description: "One of the served names; default the first." });
const flag = z.boolean().nullish();
/** No control characters, line breaks or halves of surrogate pairs. */
const PRINTABLE = /^[^\p{Cc}\p{Cs}\p{Zl}\p{Zp}]{1,128}$/u;

/** A list of anything, of which no copy is made. */
export const LIST = z.custom<readonly unknown[]>(Array.isArray, "must be a list").meta({ type: "array" });
export const OBJECT = z.custom<JsonObject>(isJsonObject, "must be an object").meta({ type: "object" });

/** The fields that every endpoint with a prompt has, `/tokenize` among them. */
export const promptShape = {
  model: MODEL,
  add_special_tokens: flag.meta({ description: "Default true for prompts, false for conversations." }),
} as const;

/** The fields that both completion endpoints share, besides those of sampling. */
export const generationShape = {
  ...promptShape,
  ...samplingShape,
  ...structuredShape,
  truncate_prompt_tokens: z
    .int()
    .refine((count) => count === -1 || count > 0, "must be positive, or -1 for what fits")
    .nullish()
    .meta({ description: "Keep the last tokens of the prompt only." }),
  stream: flag,
  stream_options: z
    .strictObject({
      include_usage: flag,
      continuous_usage_stats: flag,
      include_obfuscation: z.literal(false).nullish(),
    })
    .nullish(),
  stream_interval: z.int().min(1).nullish().meta({ description: "Tokens per event, after the first." }),
  echo: flag,
  cache_salt: z
    .string()
    .refine((salt) => salt !== "" && Buffer.byteLength(salt) <= 256, "must have 1 to 256 bytes")
    .nullish()
    .meta({ description: "Requests share cached prefixes only with requests of the same salt." }),
  request_id: z
    .string()
    .regex(PRINTABLE, "must have 1 to 128 printable characters")
    .nullish()
    .meta({ description: "Becomes part of the reply's id." }),
  return_token_ids: flag,
  return_tokens_as_token_ids: flag.meta({ description: "Write tokens of logprobs as token_id:<id>." }),
};

export const GenerationBody = z.object(generationShape);
export type GenerationBody = z.infer<typeof GenerationBody>;

/** Limits that bodies are checked against besides their schema. */
export interface BodyLimits {
  /** Tokens that a prompt may have. */
  readonly maxPromptTokens: number;
}

/** Called with the names of a body's fields that neither its schema nor the unsupported ones have. */
export type UnknownFields = (names: readonly string[]) => void;

/**
 * Checks a body against its schema.
 * @throws ApiError naming the first field that is refused or of the wrong type.
 */
export function parseBody<Shape extends z.ZodRawShape>(
  schema: z.ZodObject<Shape>,
  body: JsonObject,
  onUnknown: UnknownFields,
): z.infer<z.ZodObject<Shape>> {
  const refused = refusedField(body, schema.shape);
  if (refused) throw unsupported(refused.name, refused.message, refused.status);
  const parsed = schema.safeParse(body);
  if (!parsed.success) throw issueError(parsed.error.issues[0]!);
  const known = (name: string) =>
    Object.hasOwn(schema.shape, name) || INERT_FIELDS.has(name) || Object.hasOwn(REFUSED_FIELDS, name);
  const unknown = Object.keys(body).filter((name) => !known(name));
  if (unknown.length > 0) onUnknown(unknown);
  return parsed.data;
}

/** Checks the combinations of the shared fields. */
export function checkGeneration(body: GenerationBody & { readonly prompt_logprobs?: unknown }): void {
  if (body.stream_options && !body.stream)
    throw invalidValue("stream_options", "stream_options needs stream: true");
  if (body.stream && body.prompt_logprobs !== undefined && body.prompt_logprobs !== null)
    throw invalidValue("prompt_logprobs", "prompt_logprobs cannot be streamed");
}

/** The options of tokenization that a body holds. */
export function tokenizeOptions(body: {
  readonly add_special_tokens?: boolean | null | undefined;
  readonly truncate_prompt_tokens?: number | null | undefined;
}): SubmitOptions {
  const { add_special_tokens: special, truncate_prompt_tokens: truncate } = body;
  return {
    ...(typeof truncate === "number" && { truncatePromptTokens: truncate }),
    ...(typeof special === "boolean" && { addSpecialTokens: special }),
  };
}

function issueError(issue: z.core.$ZodIssue): ApiError {
  const extra = issue.code === "unrecognized_keys" ? issue.keys[0] : undefined;
  const [name, ...rest] = [...issue.path, ...(extra === undefined ? [] : [extra])];
  const path = `${String(name)}${rest.map((key) => (typeof key === "number" ? `[${key}]` : `.${String(key)}`)).join("")}`;
  const message = issue.message.replace(/^Invalid input: /, "");
  return invalidValue(path, `${path}: ${message}`);
}
