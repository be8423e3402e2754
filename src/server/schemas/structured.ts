import { z } from "zod";
import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import type { SamplingParams } from "../../base/sampling-params.ts";
import type { StructuredOutputs } from "../../base/structured-outputs.ts";
import { invalidValue, unsupported } from "../errors.ts";

const RESPONSE_FORMAT = {
  description: "A grammar that the output keeps to: any JSON object, or JSON that is valid under a schema.",
  type: "object",
  required: ["type"],
  properties: {
    type: { enum: ["text", "json_object", "json_schema"] },
    json_schema: {
      type: "object",
      required: ["name"],
      properties: {
        name: { type: "string" },
        description: { type: "string" },
        schema: { type: "object" },
        strict: { type: "boolean" },
      },
    },
  },
};
const STRUCTURED_OUTPUTS = {
  description: "The same in vLLM's form: one of json, json_object, regex, choice and grammar.",
  type: "object",
};

/** Fields of one grammar each, by the field of `StructuredOutputs` that they set: vLLM's older names, and SGLang's. */
const ALIASES: Readonly<Record<string, keyof StructuredOutputs>> = {
  guided_json: "json",
  guided_json_object: "jsonObject",
  guided_regex: "regex",
  guided_choice: "choice",
  guided_grammar: "grammar",
  regex: "regex",
  ebnf: "grammar",
};
const NAMES: Readonly<Record<string, keyof StructuredOutputs>> = {
  json: "json",
  json_object: "jsonObject",
  regex: "regex",
  choice: "choice",
  grammar: "grammar",
  disable_any_whitespace: "disableAnyWhitespace",
};
/** vLLM's other fields of `structured_outputs`. */
const REFUSED = ["structural_tag", "whitespace_pattern", "disable_additional_properties"];

/** The fields of both endpoints that ask for a grammar; the engine checks their contents. */
export const structuredShape: Readonly<Record<string, z.ZodType>> = {
  response_format: z.unknown().optional().meta(RESPONSE_FORMAT),
  structured_outputs: z.unknown().optional().meta(STRUCTURED_OUTPUTS),
  ...Object.fromEntries(Object.keys(ALIASES).map((name) => [name, z.unknown().optional()])),
};

/** The grammar among a body's fields. @throws ApiError naming the field. */
export function structuredParams(
  body: Readonly<Record<string, unknown>>,
): Pick<SamplingParams, "structuredOutputs" | "responseFormat"> {
  const given = (name: string) => body[name] !== undefined && body[name] !== null;
  const fields = ["response_format", "structured_outputs", ...Object.keys(ALIASES)].filter(
    (name) => given(name) && !asksNothing(name, body[name]),
  );
  const [field, other] = fields;
  if (field === undefined) return {};
  if (other !== undefined) throw invalidValue(other, `${field} and ${other} exclude each other`);
  const value = body[field];
  if (field === "response_format") return { responseFormat: responseFormat(value) };
  if (field === "structured_outputs") return { structuredOutputs: structuredOutputs(value) };
  return { structuredOutputs: { [ALIASES[field]!]: value } };
}

function asksNothing(name: string, value: unknown): boolean {
  if (name === "guided_json_object") return value === false;
  return name === "response_format" && isJsonObject(value) && value["type"] === "text";
}

function responseFormat(value: unknown): object {
  const name = "response_format";
  if (!isJsonObject(value)) throw invalidValue(name, `${name} must be an object`);
  if (value["type"] === "structural_tag")
    throw unsupported(name, `${name}: structural_tag is not supported yet`);
  // Only a schema object of a program may be something else.
  if (typeof value["type"] !== "string") throw invalidValue(name, `${name}.type must be a string`);
  return { type: value["type"], json_schema: value["json_schema"] };
}

function structuredOutputs(value: unknown): StructuredOutputs {
  const field = "structured_outputs";
  if (!isJsonObject(value)) throw invalidValue(field, `${field} must be an object`);
  const outputs: Record<string, unknown> = {};
  for (const [name, each] of Object.entries(value as JsonObject)) {
    if (each === null || each === undefined) continue;
    if (REFUSED.includes(name)) {
      if (each === false) continue;
      throw unsupported(field, `${field}.${name} is not supported yet`);
    }
    if (!Object.hasOwn(NAMES, name))
      throw invalidValue(field, `${field}: unknown field "${name.slice(0, 40)}"`);
    outputs[NAMES[name]!] = each;
  }
  return outputs;
}
