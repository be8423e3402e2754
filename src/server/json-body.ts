import { parseExactJson, spellsNumbers } from "../base/exact-json.ts";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";
import { ApiError } from "./errors.ts";
import { headerOf } from "./header.ts";
import { clientClosed } from "./request-lifetime.ts";

/** Deepest nesting of lists and objects: parsing and checking recurse. */
const MAX_DEPTH = 100;
/** Most lists, objects and fields; each costs far more than its bytes to check and to pass on. */
const MAX_PARTS = 32_768;
/** Fields that chat templates print, so numbers in them keep their spelling. */
const PRINTED_FIELDS = ["messages", "tools", "documents", "chat_template_kwargs"];
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/**
 * Reads a request's body as a JSON object. Strings are well-formed, numbers finite, and `seed` is exact: a bigint where
 * a number could not hold it. Numbers that a chat template prints are as `parseExactJson` gives them.
 * @throws ApiError 413, 415, or 400 `invalid_utf8`, `invalid_json` or `invalid_unicode`.
 */
export async function readJsonBody(request: Request, maxBytes: number): Promise<JsonObject> {
  checkHeaders(request.headers, maxBytes);
  const bytes = await readBytes(request, maxBytes);
  checkStructure(bytes);
  const text = decode(bytes);
  const value = parse(text);
  if (!isJsonObject(value)) throw invalidJson("the body must be a JSON object");
  checkValue(value);
  const body = value as Record<string, unknown>;
  if (typeof body["seed"] === "number" && !Number.isSafeInteger(body["seed"])) body["seed"] = exactSeed(text);
  if (PRINTED_FIELDS.some((name) => typeof body[name] === "object") && spellsNumbers(text)) {
    const exact = parseExactJson(text) as JsonObject;
    for (const name of PRINTED_FIELDS) if (typeof body[name] === "object") body[name] = exact[name];
  }
  return body;
}

function checkHeaders(headers: Headers, maxBytes: number): void {
  const type = headerOf(headers, "content-type")?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json")
    throw new ApiError(415, "unsupported_media_type", "Content-Type must be application/json");
  const encoding = headerOf(headers, "content-encoding")?.trim().toLowerCase() ?? "identity";
  if (encoding !== "identity")
    throw new ApiError(415, "unsupported_encoding", "the body must not be compressed");
  if (Number(headers.get("content-length") ?? 0) > maxBytes) throw tooLarge(maxBytes);
}

async function readBytes(request: Request, maxBytes: number): Promise<Uint8Array> {
  if (!request.body) return new Uint8Array(0);
  const reader = request.body.getReader();
  const parts: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read().catch(() => {
      throw clientClosed();
    });
    if (done) return parts.length === 1 ? parts[0]! : Buffer.concat(parts, length);
    length += value.length;
    if (length > maxBytes) {
      await reader.cancel();
      throw tooLarge(maxBytes);
    }
    parts.push(value);
  }
}

/** Bounds depth and parts by brackets and colons outside strings, before anything is built of them. */
function checkStructure(bytes: Uint8Array): void {
  let depth = 0;
  let parts = 0;
  let inString = false;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!;
    if (byte === QUOTE) inString = !inString;
    else if (inString) {
      if (byte === BACKSLASH) i++;
    } else if (byte === 0x5b || byte === 0x7b || byte === 0x3a) {
      if (++parts > MAX_PARTS)
        throw invalidJson(`the body has more than ${MAX_PARTS} lists, objects and fields`);
      if (byte !== 0x3a && ++depth > MAX_DEPTH)
        throw invalidJson(`the body is nested more than ${MAX_DEPTH} deep`);
    } else if (byte === 0x5d || byte === 0x7d) depth--;
  }
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

/** The `seed` of the document itself, as written. */
function exactSeed(text: string): number | bigint {
  const seeds = new Map<unknown, number | bigint>();
  const root: unknown = JSON.parse(text, function (key, value, context?: { source: string }) {
    if (key !== "seed" || typeof value !== "number") return value;
    const source = context?.source ?? "";
    seeds.set(this, /^-?\d+$/.test(source) ? BigInt(source) : value);
    return value;
  });
  return seeds.get(root)!;
}

function invalidJson(message: string): ApiError {
  return new ApiError(400, "invalid_json", message);
}

function tooLarge(maxBytes: number): ApiError {
  return new ApiError(413, "request_too_large", `the body has more than ${maxBytes} bytes`);
}
