import { type ApiError, invalidJson, invalidValue } from "../errors.ts";

/** Deepest nesting of lists and objects: parsing and checking recurse. */
const MAX_DEPTH = 100;
/** Most lists, objects, fields and entries; each costs far more than its bytes to check and to pass on. */
const MAX_PARTS = 32_768;

const QUOTE = 0x22;
const COMMA = 0x2c;
const MINUS = 0x2d;
const COLON = 0x3a;
const OPEN_LIST = 0x5b;
const BACKSLASH = 0x5c;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/** Bytes [start, end) of a member's value in its document. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/**
 * Bounds what a JSON text can be parsed to, before anything is built of it: nesting, and the number of lists, objects,
 * fields and entries. Lists of numbers, such as token ids, are as long as they like, except in the fields of `counted`.
 * A text that is no JSON may pass.
 * @returns where the values of the document's own fields lie; of those of one name, the last.
 * @throws ApiError 400 `invalid_json`, or `invalid_value` naming the field that is too large.
 */
export function scanStructure(bytes: Uint8Array, counted: readonly string[]): ReadonlyMap<string, Span> {
  const members = new Map<string, Span>();
  /** By depth, whether that container is a list. */
  const isList = new Uint8Array(MAX_DEPTH + 1);
  let depth = 0;
  let parts = 0;
  let name: string | undefined;
  let start = 0;
  /** The bytes of the last string outside any list or object of the document's own. */
  let key: Span = { start: 0, end: 0 };
  let countsNumbers = false;
  const close = (end: number) => {
    if (name !== undefined) members.set(name, { start, end });
    name = undefined;
  };

  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!;
    switch (byte) {
      case QUOTE: {
        const end = endOfString(bytes, i);
        if (depth === 1 && name === undefined) key = { start: i, end };
        i = end - 1;
        continue;
      }
      case COLON:
        parts++;
        if (depth !== 1 || parts > MAX_PARTS) break;
        name = nameOf(bytes, key);
        countsNumbers = counted.includes(name);
        start = i + 1;
        break;
      case OPEN_LIST:
      case OPEN_OBJECT:
        parts++;
        if (++depth > MAX_DEPTH) throw invalidJson(`the body is nested more than ${MAX_DEPTH} deep`);
        isList[depth] = byte === OPEN_LIST ? 1 : 0;
        break;
      case COMMA:
        if (depth === 1) close(i);
        if (isList[depth] === 1 && isPart(firstOfValue(bytes, i + 1), countsNumbers)) parts++;
        break;
      case CLOSE_LIST:
      case CLOSE_OBJECT:
        if (depth === 1) close(i);
        depth = Math.max(0, depth - 1);
        break;
      default:
        continue;
    }
    if (parts > MAX_PARTS) throw tooMany(name);
  }
  return members;
}

/** The end of the string that begins at `start`, its quotes included. */
function endOfString(bytes: Uint8Array, start: number): number {
  for (let i = start + 1; i < bytes.length; i++) {
    const byte = bytes[i]!;
    if (byte === QUOTE) return i + 1;
    if (byte === BACKSLASH) i++;
  }
  return bytes.length;
}

/** The byte that the value at `at` begins with, after blanks; 0 at the end. */
function firstOfValue(bytes: Uint8Array, at: number): number {
  let i = at;
  while (bytes[i]! <= 0x20) i++;
  return bytes[i] ?? 0;
}

/** True for an entry that counts as a part, by its first byte. Lists and objects do where they open. */
function isPart(first: number, countsNumbers: boolean): boolean {
  if (first === OPEN_LIST || first === OPEN_OBJECT) return false;
  return countsNumbers || !(first === MINUS || (first >= 0x30 && first <= 0x39));
}

function nameOf(bytes: Uint8Array, { start, end }: Span): string {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + start, end - start).toString();
  try {
    return String(JSON.parse(text));
  } catch {
    return text;
  }
}

function tooMany(name: string | undefined): ApiError {
  const what = `more than ${MAX_PARTS} lists, objects, fields and entries`;
  return name === undefined ? invalidJson(`the body has ${what}`) : invalidValue(name, `${name} has ${what}`);
}
