import { InvalidRequestError } from "./errors.ts";
import { isJsonObject, type JsonObject } from "./json-object.ts";

/** The grammar of an output: exactly one of the first five. */
export interface StructuredOutputs {
  /**
   * JSON that is valid under this schema: JSON Schema 2020-12 as an object or as text, or a zod schema. What cannot be enforced is
   * refused with a `SchemaError`.
   */
  readonly json?: unknown;
  /** True: any JSON object. */
  readonly jsonObject?: boolean | null;
  /** Text that this regular expression, in ECMAScript's syntax, matches from beginning to end. */
  readonly regex?: string | null;
  /** One of these texts. */
  readonly choice?: readonly string[] | null;
  /** Text of this grammar in EBNF, whose first rule is `root`. */
  readonly grammar?: string | null;
  /** JSON without white space between its parts. Default false: as it is written on one line, or indented. */
  readonly disableAnyWhitespace?: boolean | null;
}

/** OpenAI's `response_format`; anything else is taken for a zod schema. */
export type ResponseFormat =
  | { readonly type: "text" | "json_object" }
  | {
      readonly type: "json_schema";
      readonly json_schema: {
        readonly name?: string | undefined;
        readonly description?: string | undefined;
        readonly schema?: unknown;
        /** The schema is enforced whatever this says. */
        readonly strict?: boolean | null | undefined;
      };
    }
  | object;

/** One kind of grammar, and the parameter that it came in, for errors. */
export interface ResolvedOutputs extends StructuredOutputs {
  readonly param: "structuredOutputs" | "responseFormat";
}

const KINDS = ["json", "jsonObject", "regex", "choice", "grammar"] as const;
const NAME = /^[\w-]{1,64}$/;

/**
 * The grammar that a request asks for, in one form; undefined: none.
 * @throws InvalidRequestError naming the parameter.
 */
export function structuredOutputs(outputs: unknown, format: unknown): ResolvedOutputs | undefined {
  const asked = ofOutputs(outputs ?? undefined);
  const formatted = ofFormat(format ?? undefined);
  if (!asked || !formatted) return asked ?? formatted;
  throw new InvalidRequestError(
    "structuredOutputs",
    "structuredOutputs and responseFormat exclude each other",
  );
}

function ofOutputs(outputs: unknown): ResolvedOutputs | undefined {
  if (outputs === undefined) return undefined;
  const fail = (message: string) =>
    new InvalidRequestError("structuredOutputs", `structuredOutputs${message}`);
  if (!isJsonObject(outputs)) throw fail(" must be an object");
  for (const key of Object.keys(outputs)) {
    const known = (KINDS as readonly string[]).includes(key) || key === "disableAnyWhitespace";
    if (!known) throw fail(`: unknown field "${key.slice(0, 40)}"`);
  }
  const given: StructuredOutputs = outputs;
  const kinds = KINDS.filter(
    (kind) => given[kind] !== undefined && given[kind] !== null && given[kind] !== false,
  );
  if (kinds.length !== 1) throw fail(` must have exactly one of ${KINDS.join(", ")}, not ${kinds.length}`);
  const { jsonObject, regex, choice, grammar, disableAnyWhitespace } = given;
  if (jsonObject !== undefined && jsonObject !== null && typeof jsonObject !== "boolean")
    throw fail(".jsonObject must be true or false");
  for (const [name, value] of Object.entries({ regex, grammar }))
    if (value !== undefined && value !== null && typeof value !== "string")
      throw fail(`.${name} must be a text`);
  if (choice && (!Array.isArray(choice) || choice.some((each) => typeof each !== "string")))
    throw fail(".choice must be a list of texts");
  const compact = disableAnyWhitespace ?? false;
  if (typeof compact !== "boolean") throw fail(".disableAnyWhitespace must be true or false");
  return { param: "structuredOutputs", [kinds[0]!]: given[kinds[0]!], disableAnyWhitespace: compact };
}

function ofFormat(format: unknown): ResolvedOutputs | undefined {
  if (format === undefined) return undefined;
  const fail = (message: string) => new InvalidRequestError("responseFormat", `responseFormat${message}`);
  if (!isJsonObject(format)) throw fail(" must be an object");
  const param = "responseFormat";
  if (isZod(format)) return { param, json: format };
  const { type } = format;
  if (type === "text") return undefined;
  if (type === "json_object") return { param, jsonObject: true };
  if (type !== "json_schema") throw fail(".type must be text, json_object or json_schema");
  const given = format["json_schema"];
  if (!isJsonObject(given)) throw fail(".json_schema must be an object");
  const { name, strict }: JsonObject = given;
  if (name !== undefined && (typeof name !== "string" || !NAME.test(name)))
    throw fail(".json_schema.name must have 1 to 64 letters, digits, underscores or dashes");
  if (strict !== undefined && strict !== null && typeof strict !== "boolean")
    throw fail(".json_schema.strict must be true or false");
  const schema = given["schema"] ?? given["json_schema"];
  // Without a schema OpenAI asks for any object.
  return schema === undefined || schema === null ? { param, jsonObject: true } : { param, json: schema };
}

/** True for a schema of zod 4. */
export function isZod(value: unknown): boolean {
  return typeof value === "object" && value !== null && "_zod" in value;
}
