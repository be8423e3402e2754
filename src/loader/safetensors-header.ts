import { ModelDataError } from "../base/errors.ts";
import { isJsonObject, type JsonObject } from "../base/json-object.ts";
import { quoted } from "../base/quoted.ts";

/** One tensor of a safetensors file. */
export interface SafetensorsEntry {
  /** The format's name of the element type, e.g. `BF16`. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Byte offsets in the file, `[begin, end)`. */
  readonly begin: number;
  readonly end: number;
}

export const MAX_HEADER_BYTES = 64 * 1024 * 1024;
const MAX_TENSORS = 65_536;
const MAX_NAME_BYTES = 512;
const MAX_RANK = 8;
/** The header, a tensor, its shape. */
const MAX_DEPTH = 3;

/** Bits of one element, for every dtype of the format. */
const DTYPE_BITS: ReadonlyMap<string, number> = new Map([
  ...["F4"].map((name) => [name, 4] as const),
  ...["F6_E2M3", "F6_E3M2"].map((name) => [name, 6] as const),
  ...["BOOL", "U8", "I8"].map((name) => [name, 8] as const),
  ...["F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"].map((name) => [name, 8] as const),
  ...["I16", "U16", "F16", "BF16"].map((name) => [name, 16] as const),
  ...["I32", "U32", "F32"].map((name) => [name, 32] as const),
  ...["I64", "U64", "F64", "C64"].map((name) => [name, 64] as const),
]);

/**
 * Validates a safetensors header: strict UTF-8 and JSON, exactly the keys of the format, no name twice, known dtypes,
 * exact integers, and byte ranges that tile the data section without hole, overlap or remainder. Tensors come in file
 * order.
 * @param bytes the header alone, without its 8-byte length.
 * @param fileSize bytes of the whole file.
 * @throws ModelDataError naming the rule that is broken.
 */
export function parseSafetensorsHeader(
  file: string,
  bytes: Uint8Array,
  fileSize: number,
): ReadonlyMap<string, SafetensorsEntry> {
  const dataStart = 8 + bytes.length;
  const entries: [name: string, entry: SafetensorsEntry][] = [];
  const { header, numNames } = parseJson(file, bytes);
  let numKept = 0;
  for (const [name, value] of Object.entries(header)) {
    numKept++;
    if (name === "__metadata__") {
      if (!isJsonObject(value) || Object.values(value).some((text) => typeof text !== "string"))
        throw new ModelDataError(file, "__metadata__ must map strings to strings");
    } else {
      entries.push([name, parseEntry(file, name, value, dataStart)]);
    }
    numKept += Object.keys(value as JsonObject).length;
  }
  if (entries.length > MAX_TENSORS)
    throw new ModelDataError(file, `${entries.length} tensors, at most ${MAX_TENSORS} are allowed`);
  // JSON.parse keeps the last of equal names; another reader might keep the first and see another tensor.
  if (numKept !== numNames) throw new ModelDataError(file, "the header has an object with a name twice");

  entries.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  let end = dataStart;
  for (const [name, entry] of entries) {
    if (entry.begin !== end) {
      const what = entry.begin > end ? "leaves a hole before it" : "overlaps the tensor before it";
      throw new ModelDataError(file, `tensor ${quoted(name)} ${what} in the data section`);
    }
    end = entry.end;
  }
  if (end !== fileSize)
    throw new ModelDataError(file, `header and tensors need ${end} bytes, but the file has ${fileSize}`);
  return new Map(entries);
}

/** The header as an object, and how many names its text has, in objects at every level. */
function parseJson(file: string, bytes: Uint8Array): { header: JsonObject; numNames: number } {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw new ModelDataError(file, "the header is not UTF-8", { cause: error });
  }
  // Before anything is built of it: 64 MiB of nested brackets cost JSON.parse 2.7 GB.
  const { numNames, depth } = measure(text);
  if (depth > MAX_DEPTH)
    throw new ModelDataError(file, `the header is nested deeper than ${MAX_DEPTH} levels`);
  try {
    const header: unknown = JSON.parse(text);
    if (isJsonObject(header) && text.startsWith("{")) return { header, numNames };
  } catch (error) {
    throw new ModelDataError(file, "the header is not JSON", { cause: error });
  }
  throw new ModelDataError(file, "the header is not a JSON object from its first character on");
}

/** The names (a colon follows each) and the deepest nesting of JSON text; of other text, some numbers. */
function measure(text: string): { numNames: number; depth: number } {
  let numNames = 0;
  let depth = 0;
  let level = 0;
  let inString = false;
  for (let i = 0; i < text.length; i++) {
    const char = text[i];
    if (char === '"') inString = !inString;
    else if (inString) {
      if (char === "\\") i++;
    } else if (char === ":") numNames++;
    else if (char === "{" || char === "[") depth = Math.max(depth, ++level);
    else if (char === "}" || char === "]") level--;
  }
  return { numNames, depth };
}

function parseEntry(file: string, name: string, value: unknown, dataStart: number): SafetensorsEntry {
  const fail = (rule: string): never => {
    throw new ModelDataError(file, `tensor ${quoted(name)} ${rule}`);
  };
  if (Buffer.byteLength(name) > MAX_NAME_BYTES) fail(`has a name longer than ${MAX_NAME_BYTES} bytes`);
  if (!isJsonObject(value)) return fail("is not described by an object");
  const { dtype, shape, data_offsets: offsets } = value;
  if (dtype === undefined || shape === undefined || offsets === undefined || Object.keys(value).length !== 3)
    return fail("must have exactly dtype, shape and data_offsets");

  if (typeof dtype !== "string") return fail("has a dtype that is not a string");
  const bits = DTYPE_BITS.get(dtype);
  if (bits === undefined) return fail(`has the unknown dtype ${quoted(dtype)}`);
  if (!isCounts(shape)) return fail("has a shape that is not a list of exact non-negative integers");
  if (shape.length > MAX_RANK) fail(`has rank ${shape.length}, at most ${MAX_RANK} is allowed`);
  if (!isCounts(offsets) || offsets.length !== 2)
    return fail("has data_offsets that are not two exact non-negative integers");
  const [begin, end] = offsets as [number, number];
  if (begin > end) fail("has data_offsets that run backwards");

  let size = 1;
  for (const extent of shape) {
    size *= extent;
    if (!Number.isSafeInteger(size)) fail("has more elements than can be addressed");
  }
  if (!Number.isSafeInteger(size * bits)) fail("has more bytes than can be addressed");
  if ((size * bits) % 8 !== 0) fail("does not end on a byte boundary");
  if (end - begin !== (size * bits) / 8)
    fail(`needs ${(size * bits) / 8} bytes for ${dtype} [${shape.join(", ")}], but spans ${end - begin}`);
  if (!Number.isSafeInteger(dataStart + end)) fail("ends past any possible file");
  return Object.freeze({
    dtype,
    shape: Object.freeze(shape),
    begin: dataStart + begin,
    end: dataStart + end,
  });
}

function isCounts(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && item >= 0);
}
