/** Writes GGUF files for tests, without the code under test. */

/** Types of values by name, with their number in the file and how an item is written. */
const SCALARS = {
  u8: [0, 1, (view: DataView, value: number) => view.setUint8(0, value)],
  i8: [1, 1, (view: DataView, value: number) => view.setInt8(0, value)],
  u16: [2, 2, (view: DataView, value: number) => view.setUint16(0, value, true)],
  i16: [3, 2, (view: DataView, value: number) => view.setInt16(0, value, true)],
  u32: [4, 4, (view: DataView, value: number) => view.setUint32(0, value, true)],
  i32: [5, 4, (view: DataView, value: number) => view.setInt32(0, value, true)],
  f32: [6, 4, (view: DataView, value: number) => view.setFloat32(0, value, true)],
  u64: [10, 8, (view: DataView, value: number) => view.setBigUint64(0, BigInt(value), true)],
  i64: [11, 8, (view: DataView, value: number) => view.setBigInt64(0, BigInt(value), true)],
  f64: [12, 8, (view: DataView, value: number) => view.setFloat64(0, value, true)],
} as const;
const BOOL = 7;
const STRING = 8;
const LIST = 9;

export type ScalarName = keyof typeof SCALARS;

/** A number of a named type, or a list of them. Numbers alone are written as u32, or f32 if they are no integers. */
export type Value =
  | number
  | boolean
  | string
  | readonly string[]
  | { readonly type: ScalarName; readonly value: number | readonly number[] };

export interface TensorInput {
  /** The number of the type in the file. */
  readonly type: number;
  /** Row-major, as everywhere but in the file. */
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

export interface FileInput {
  readonly metadata?: Readonly<Record<string, Value>>;
  readonly tensors?: Readonly<Record<string, TensorInput>>;
  /** Default 3. */
  readonly version?: number;
  /** Default 32. */
  readonly alignment?: number;
}

export const f32 = (value: number | readonly number[]): Value => ({ type: "f32", value });

/** A tensor of float32. */
export function floats(shape: readonly number[], values: ArrayLike<number>): TensorInput {
  return { type: 0, shape, data: new Uint8Array(Float32Array.from(values).buffer) };
}

export function u32(value: number): Buffer {
  return scalar("u32", value);
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

/** A length and that many bytes. */
export function string(text: string | Uint8Array): Buffer {
  const bytes = Buffer.from(text as string);
  return Buffer.concat([u64(bytes.length), bytes]);
}

/** Key, type and value. */
export function entry(key: string, value: Value): Buffer {
  return Buffer.concat([string(key), encoded(value)]);
}

/** A tensor's entry in the header. */
export function tensorInfo(
  name: string,
  { type, shape }: Pick<TensorInput, "type" | "shape">,
  offset: number | bigint,
): Buffer {
  const dims = [...shape].reverse().map(u64);
  return Buffer.concat([string(name), u32(shape.length), ...dims, u32(type), u64(offset)]);
}

/** Magic, version and counts. */
export function opening(numTensors: number | bigint, numEntries: number | bigint, version = 3): Buffer {
  return Buffer.concat([Buffer.from("GGUF"), u32(version), u64(numTensors), u64(numEntries)]);
}

/** A well-formed file, if the input is. */
export function gguf({ metadata = {}, tensors = {}, version = 3, alignment = 32 }: FileInput): Buffer {
  const padded = (bytes: Uint8Array) =>
    Buffer.concat([bytes, Buffer.alloc((alignment - (bytes.length % alignment)) % alignment)]);
  const entries = Object.entries(metadata).map(([key, value]) => entry(key, value));
  const infos: Buffer[] = [];
  const data: Buffer[] = [];
  let offset = 0;
  for (const [name, tensor] of Object.entries(tensors)) {
    infos.push(tensorInfo(name, tensor, offset));
    data.push(padded(tensor.data));
    offset += data.at(-1)!.length;
  }
  const header = Buffer.concat([opening(infos.length, entries.length, version), ...entries, ...infos]);
  return Buffer.concat([padded(header), ...data]);
}

function encoded(value: Value): Buffer {
  if (typeof value === "string") return Buffer.concat([u32(STRING), string(value)]);
  if (typeof value === "boolean") return Buffer.concat([u32(BOOL), Buffer.from([value ? 1 : 0])]);
  if (typeof value === "number") return encoded({ type: Number.isInteger(value) ? "u32" : "f32", value });
  if (!("type" in value)) return Buffer.concat([u32(LIST), u32(STRING), u64(value.length), strings(value)]);
  const { type, value: items } = value;
  const [id] = SCALARS[type];
  if (typeof items === "number") return Buffer.concat([u32(id), scalar(type, items)]);
  return Buffer.concat([u32(LIST), u32(id), u64(items.length), scalars(type, items)]);
}

/** The strings of a list, of which vocabularies have hundreds of thousands. */
function strings(texts: readonly string[]): Buffer {
  const sizes = texts.map((text) => Buffer.byteLength(text));
  const bytes = Buffer.alloc(sizes.reduce((sum, size) => sum + 8 + size, 0));
  let at = 0;
  for (const [i, text] of texts.entries()) {
    bytes.writeUInt32LE(sizes[i]!, at);
    bytes.write(text, at + 8);
    at += 8 + sizes[i]!;
  }
  return bytes;
}

function scalar(type: ScalarName, value: number): Buffer {
  return scalars(type, [value]);
}

function scalars(type: ScalarName, values: readonly number[]): Buffer {
  const [, size, write] = SCALARS[type];
  const bytes = Buffer.alloc(values.length * size);
  for (const [i, value] of values.entries())
    write(new DataView(bytes.buffer, bytes.byteOffset + i * size, size), value);
  return bytes;
}
