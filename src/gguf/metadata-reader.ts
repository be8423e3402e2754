import { quoted } from "../base/quoted.ts";
import { decodeUtf8, type HeaderReader } from "./header-reader.ts";
import { type GgufList, GgufMetadata, type GgufValue } from "./metadata.ts";

const MAX_ENTRIES = 4096;
const MAX_KEY_BYTES = 512;
const MAX_STRING_BYTES = 4 * 2 ** 20;
const MAX_ITEMS = 2 ** 24;

interface ScalarType {
  readonly name: string;
  readonly bytes: number;
  readonly read: (bytes: Buffer, at: number) => number | bigint;
}

/** Types of numbers, and that of truth values, by their number in the file. */
const SCALARS: ReadonlyMap<number, ScalarType> = new Map([
  [0, { name: "u8", bytes: 1, read: (bytes, at) => bytes[at]! }],
  [1, { name: "i8", bytes: 1, read: (bytes, at) => bytes.readInt8(at) }],
  [2, { name: "u16", bytes: 2, read: (bytes, at) => bytes.readUInt16LE(at) }],
  [3, { name: "i16", bytes: 2, read: (bytes, at) => bytes.readInt16LE(at) }],
  [4, { name: "u32", bytes: 4, read: (bytes, at) => bytes.readUInt32LE(at) }],
  [5, { name: "i32", bytes: 4, read: (bytes, at) => bytes.readInt32LE(at) }],
  [6, { name: "f32", bytes: 4, read: (bytes, at) => bytes.readFloatLE(at) }],
  [7, { name: "bool", bytes: 1, read: (bytes, at) => bytes[at]! }],
  [10, { name: "u64", bytes: 8, read: (bytes, at) => exact(bytes.readBigUInt64LE(at)) }],
  [11, { name: "i64", bytes: 8, read: (bytes, at) => exact(bytes.readBigInt64LE(at)) }],
  [12, { name: "f64", bytes: 8, read: (bytes, at) => bytes.readDoubleLE(at) }],
]);
const STRING = 8;
const LIST = 9;
/** Of a string in the file: its length, if nothing else. */
const MIN_STRING_BYTES = 8;

/**
 * Reads the entries of a header. Keys are unique and of 512 bytes at most; lists hold scalars or strings, not lists.
 * @param count what the file says, not believed
 * @throws ModelDataError naming the entry and the rule that it breaks
 */
export function readMetadata(reader: HeaderReader, count: number): GgufMetadata {
  if (count > MAX_ENTRIES)
    throw reader.error(`${count} metadata entries, at most ${MAX_ENTRIES} are allowed`);
  const values = new Map<string, GgufValue>();
  for (let i = 0; i < count; i++) {
    const key = reader.string(MAX_KEY_BYTES, `the key of metadata entry ${i}`);
    if (values.has(key)) throw reader.error(`metadata has the key ${quoted(key)} twice`);
    const what = `metadata ${quoted(key)}`;
    values.set(key, readValue(reader, reader.u32(`the type of ${what}`), what));
  }
  return new GgufMetadata(reader.path, values);
}

function readValue(reader: HeaderReader, type: number, what: string): GgufValue {
  if (type === STRING) return reader.string(MAX_STRING_BYTES, what);
  if (type === LIST) return readList(reader, what);
  const scalar = SCALARS.get(type);
  if (scalar === undefined) throw reader.error(`${what} has the unknown type ${type}`);
  const value = scalar.read(reader.bytes, reader.skip(scalar.bytes, what));
  if (scalar.name !== "bool") return value;
  if (value !== 0 && value !== 1) throw reader.error(`${what} is neither true nor false but ${value}`);
  return value === 1;
}

function readList(reader: HeaderReader, what: string): GgufList {
  const type = reader.u32(`the item type of ${what}`);
  const scalar = SCALARS.get(type);
  if (type === LIST) throw reader.error(`${what} is a list of lists, which is not allowed`);
  if (scalar === undefined && type !== STRING)
    throw reader.error(`${what} has the unknown item type ${type}`);
  const length = reader.u64(`the number of items of ${what}`);
  if (length > MAX_ITEMS) throw reader.error(`${what} has ${length} items, at most ${MAX_ITEMS} are allowed`);
  if (length * (scalar?.bytes ?? MIN_STRING_BYTES) > reader.remaining)
    throw reader.error(`${what} has ${length} items, more than fit into the file`);
  if (scalar !== undefined) {
    const start = reader.skip(length * scalar.bytes, what);
    return new ScalarList(reader, what, scalar, length, start);
  }
  const start = reader.position;
  for (let i = 0; i < length; i++) reader.skipString(what);
  return new StringList(reader, what, length, start);
}

class ScalarList implements GgufList {
  constructor(
    private readonly reader: HeaderReader,
    private readonly what: string,
    private readonly type: ScalarType,
    readonly length: number,
    private readonly start: number,
  ) {}

  get itemType(): string {
    return this.type.name;
  }

  strings(): never {
    throw this.reader.error(`${this.what} is a list of ${this.itemType}, not of strings`);
  }

  numbers(): number[] {
    const { type, start, reader } = this;
    return Array.from({ length: this.length }, (_, i) => {
      const value = type.read(reader.bytes, start + i * type.bytes);
      if (typeof value === "number") return value;
      throw reader.error(`${this.what} has the item ${value}, which is too large`);
    });
  }

  positionsOf(): number[] {
    return [];
  }
}

class StringList implements GgufList {
  readonly itemType = "string";

  constructor(
    private readonly reader: HeaderReader,
    private readonly what: string,
    readonly length: number,
    private readonly start: number,
  ) {}

  strings(): string[] {
    const { bytes, path } = this.reader;
    const strings: string[] = [];
    for (const [begin, end] of this.#spans())
      strings.push(decodeUtf8(path, bytes, begin, end, `item ${strings.length} of ${this.what}`));
    return strings;
  }

  positionsOf(texts: ReadonlySet<string>): number[] {
    const { bytes } = this.reader;
    const lengths = new Set([...texts].map((text) => Buffer.byteLength(text)));
    const found: number[] = [];
    let position = 0;
    for (const [begin, end] of this.#spans()) {
      // Most items are told apart by their length: they need not become strings.
      if (lengths.has(end - begin) && texts.has(bytes.toString("utf8", begin, end))) found.push(position);
      position++;
    }
    return found;
  }

  /** The beginning and the end of each item's bytes. */
  *#spans(): Generator<readonly [begin: number, end: number]> {
    const { bytes } = this.reader;
    for (let i = 0, at = this.start; i < this.length; i++) {
      const begin = at + MIN_STRING_BYTES;
      at = begin + bytes.readUInt32LE(at);
      yield [begin, at];
    }
  }

  numbers(): never {
    throw this.reader.error(`${this.what} is a list of strings, not of numbers`);
  }
}

function exact(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
