import { UnsupportedModelError } from "../base/errors.ts";
import { quoted } from "../base/quoted.ts";
import { LOADABLE_TYPES } from "./dequantize.ts";
import { GGML_TYPES } from "./ggml-types.ts";
import type { HeaderReader } from "./header-reader.ts";
import type { GgufMetadata } from "./metadata.ts";
import { readMetadata } from "./metadata-reader.ts";

/** A tensor of a GGUF file. */
export interface GgufTensor {
  /** The format's name of the element type, e.g. `Q4_K`. */
  readonly type: string;
  /** Row-major: the file has the dimensions the other way round. */
  readonly shape: readonly number[];
  /** Byte offsets in the file, `[begin, end)`. */
  readonly begin: number;
  readonly end: number;
}

export interface GgufHeader {
  readonly metadata: GgufMetadata;
  /** By the file's names, in the order of their data. */
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

/** "GGUF" as a little-endian number. */
export const GGUF_MAGIC = 0x46554747;
const MAX_TENSORS = 65_536;
const MAX_NAME_BYTES = 512;
const MAX_RANK = 4;
const DEFAULT_ALIGNMENT = 32;
const MAX_ALIGNMENT = 2 ** 16;

/**
 * Reads and validates the header of a GGUF file, version 2 or 3: counts within their limits, no name twice, known types,
 * rows of whole blocks, and tensors that tile the data section, but for the bytes that align them, without hole, overlap or
 * remainder.
 * @param fileSize bytes of the whole file
 * @throws ModelDataError naming the entry or tensor and the rule that it breaks; UnsupportedModelError for other versions
 */
export function readHeader(reader: HeaderReader, fileSize: number): GgufHeader {
  if (reader.remaining < 4 || reader.u32("the magic number") !== GGUF_MAGIC)
    throw reader.error("does not begin with GGUF");
  const version = reader.u32("the version");
  if (version !== 2 && version !== 3) {
    const bigEndian = version === 0x2000000 || version === 0x3000000;
    const what = bigEndian ? "big-endian GGUF files are" : `version ${version} of GGUF is`;
    throw new UnsupportedModelError(
      reader.path,
      `${what} not supported; versions 2 and 3, little-endian, are`,
    );
  }
  const numTensors = reader.u64("the number of tensors");
  if (numTensors > MAX_TENSORS)
    throw reader.error(`${numTensors} tensors, at most ${MAX_TENSORS} are allowed`);
  const metadata = readMetadata(reader, reader.u64("the number of metadata entries"));
  const alignment = readAlignment(metadata);
  const infos = Array.from({ length: numTensors }, (_, i) => readTensorInfo(reader, i, alignment));
  return { metadata, tensors: placeTensors(reader, infos, alignment, fileSize) };
}

function readAlignment(metadata: GgufMetadata): number {
  const key = "general.alignment";
  const alignment = metadata.number(key) ?? DEFAULT_ALIGNMENT;
  const isPower = Number.isInteger(alignment) && (alignment & (alignment - 1)) === 0;
  if (!isPower || alignment < 8 || alignment > MAX_ALIGNMENT)
    throw metadata.invalid(key, `a power of two from 8 to ${MAX_ALIGNMENT}`);
  return alignment;
}

/** A tensor as the header describes it. */
interface TensorInfo {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
  readonly bytes: number;
  /** From the beginning of the data section. */
  readonly offset: number;
}

function readTensorInfo(reader: HeaderReader, index: number, alignment: number): TensorInfo {
  const name = reader.string(MAX_NAME_BYTES, `the name of tensor ${index}`);
  const what = `tensor ${quoted(name)}`;
  const rank = reader.u32(`the rank of ${what}`);
  if (rank < 1 || rank > MAX_RANK)
    throw reader.error(`${what} has rank ${rank}, allowed are 1 to ${MAX_RANK}`);
  const dims = Array.from({ length: rank }, () => reader.u64(`a dimension of ${what}`));
  const typeId = reader.u32(`the type of ${what}`);
  const type = GGML_TYPES.get(typeId);
  if (type === undefined)
    throw new UnsupportedModelError(
      reader.path,
      `${what} has the unknown type ${typeId}; supported are ${LOADABLE_TYPES.join(", ")}`,
    );
  const size = dims.reduce((product, extent) => product * extent, 1);
  if (size === 0) throw reader.error(`${what} has a dimension of 0`);
  if (!Number.isSafeInteger(size)) throw reader.error(`${what} has more elements than can be addressed`);
  if (dims[0]! % type.elements !== 0)
    throw reader.error(
      `${what} has rows of ${dims[0]} elements, which are no whole blocks of ${type.elements} (${type.name})`,
    );
  const bytes = (size / type.elements) * type.bytes;
  const offset = reader.u64(`the offset of ${what}`);
  if (offset % alignment !== 0)
    throw reader.error(`${what} has the offset ${offset}, no multiple of the alignment ${alignment}`);
  return { name, type: type.name, shape: Object.freeze(dims.reverse()), bytes, offset };
}

function placeTensors(
  reader: HeaderReader,
  infos: TensorInfo[],
  alignment: number,
  fileSize: number,
): ReadonlyMap<string, GgufTensor> {
  const aligned = (offset: number) => Math.ceil(offset / alignment) * alignment;
  // A file without tensors may end with its metadata.
  const dataStart = infos.length === 0 ? reader.position : aligned(reader.position);
  const tensors = new Map<string, GgufTensor>();
  let end = 0;
  for (const { name, type, shape, bytes, offset } of infos.sort((a, b) => a.offset - b.offset)) {
    const what = `tensor ${quoted(name)}`;
    if (tensors.has(name)) throw reader.error(`${what} is there twice`);
    if (offset !== aligned(end)) {
      const how = offset > end ? "leaves a hole before it" : "overlaps the tensor before it";
      throw reader.error(`${what} ${how} in the data section`);
    }
    end = offset + bytes;
    if (dataStart + end > fileSize)
      throw reader.error(`${what} ends at byte ${dataStart + end}, but the file has ${fileSize}`);
    tensors.set(name, { type, shape, begin: dataStart + offset, end: dataStart + end });
  }
  const rest = fileSize - (dataStart + end);
  if (rest >= alignment) throw reader.error(`${rest} bytes follow the last tensor`);
  return tensors;
}
