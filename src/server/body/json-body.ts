import { parseExactJson, spellsNumbers } from "../../base/exact-json.ts";
import { isJsonObject, type JsonObject } from "../../base/json-object.ts";
import { ApiError, invalidJson } from "../errors.ts";
import { type Span, scanStructure } from "./json-structure.ts";

/** Fields that chat templates print, so numbers in them keep their spelling. */
const PRINTED_FIELDS = ["messages", "input", "tools", "documents", "chat_template_kwargs"];
/** Longest spelling of an integer that is parsed exactly: 64 bits have 20 digits. */
const MAX_DIGITS = 40;

/**
 * Parses a body as a JSON object. Strings are well-formed, numbers finite, and `seed` is exact: a bigint where a number
 * could not hold it. Numbers that a chat template prints are as `parseExactJson` gives them.
 * @throws ApiError 400 `invalid_utf8`, `invalid_json`, `invalid_unicode`, or `invalid_value` for a field that is too large.
 */
export function parseJsonBody(bytes: Uint8Array): JsonObject {
  const members = scanStructure(bytes, PRINTED_FIELDS);
  const value = parse(decode(bytes));
  if (!isJsonObject(value)) throw invalidJson("the body must be a JSON object");
  checkValue(value);
  const body = value as Record<string, unknown>;
  const source = ({ start, end }: Span) => decode(bytes.subarray(start, end)).trim();
  const seed = members.get("seed");
  if (seed && typeof body["seed"] === "number" && !Number.isSafeInteger(body["seed"])) {
    const spelling = source(seed);
    if (/^-?\d+$/.test(spelling) && spelling.length <= MAX_DIGITS) body["seed"] = BigInt(spelling);
  }
  for (const name of PRINTED_FIELDS) {
    const span = members.get(name);
    if (!span || typeof body[name] !== "object") continue;
    const spelling = source(span);
    if (spellsNumbers(spelling)) body[name] = parseExactJson(spelling);
  }
  return body;
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new ApiError(400, "invalid_utf8", "the body is not UTF-8");
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw invalidJson("the body is not JSON");
  }
}

function checkValue(value: unknown): void {
  if (typeof value === "string") checkText(value);
  else if (typeof value === "number") {
    if (!Number.isFinite(value)) throw invalidJson("a number is too large");
  } else if (Array.isArray(value)) {
    for (const entry of value) checkValue(entry);
  } else if (typeof value === "object" && value !== null) {
    for (const [key, entry] of Object.entries(value)) {
      checkText(key);
      checkValue(entry);
    }
  }
}

function checkText(text: string): void {
  if (!text.isWellFormed())
    throw new ApiError(400, "invalid_unicode", "a string holds half of a surrogate pair");
}
