import { dtypeSize, type FloatDType, narrow } from "../base/dtype.ts";
import { invariant, ModelDataError } from "../base/errors.ts";
import type { Affine } from "../base/parameter-spec.ts";
import { readFully } from "../base/read-fully.ts";
import { lengthOf } from "../base/shard.ts";
import { isBlockType } from "../gguf/dequantize.ts";
import { bytesOfRows, formOf, type RowsRead, readRows } from "./rows-read.ts";
import { decode, type StoredDType, unitOf } from "./stored-dtype.ts";

/** A piece of a file that becomes a piece of a parameter. Plain data, so that it can be sent to a Worker. */
export interface ChunkRead {
  /** The tensor's in the file, for messages. */
  readonly name: string;
  readonly path: string;
  /** Of the open file: descriptors are the process's, good on every thread. */
  readonly fd: number;
  /** Byte offsets in the file: whole units of `dtype`, and whole rows when only some columns are wanted. */
  readonly begin: number;
  readonly end: number;
  /** Bytes of a row in the file; of each row the bytes `[columnBegin, columnEnd)` are wanted. */
  readonly rowBytes: number;
  readonly columnBegin: number;
  readonly columnEnd: number;
  /** The elements of those bytes that are wanted, `[start, end)`; absent where all are. */
  readonly trim?: { readonly start: number; readonly end: number };
  readonly dtype: StoredDType;
  readonly targetDtype: FloatDType;
  /** See `ParameterSource.affine`. */
  readonly affine?: Affine | undefined;
}

/**
 * The shortest part of a row that is read by itself, where only some columns are wanted: below, what lies between is on
 * the same pages anyway.
 */
const MIN_PIECE_BYTES = 4096;

/** True if all of every row is wanted, so that what is wanted lies side by side in the file. */
export function isContiguous({ rowBytes, columnBegin, columnEnd, trim }: ChunkRead): boolean {
  return columnEnd - columnBegin === rowBytes && trim === undefined;
}

/** The elements that some bytes of a chunk stand for. */
function elementsIn(bytes: number, { dtype }: ChunkRead): number {
  const unit = unitOf(dtype);
  return (bytes / unit.bytes) * unit.elements;
}

/** Elements of the parameter that a chunk gives. */
export function elementsOf(chunk: ChunkRead | RowsRead): number {
  if ("reading" in chunk) return lengthOf(chunk.rows) * formOf(chunk.reading).width;
  const bytes = chunk.end - chunk.begin;
  if (isContiguous(chunk)) return elementsIn(bytes, chunk);
  const { rowBytes, columnBegin, columnEnd, trim } = chunk;
  const wanted = trim ? trim.end - trim.start : elementsIn(columnEnd - columnBegin, chunk);
  return (bytes / rowBytes) * wanted;
}

/** Bytes of each row that are read: the wanted ones alone, or all of a row whose wanted part is short. */
export function bytesReadOfRow({ rowBytes, columnBegin, columnEnd }: ChunkRead): number {
  const wanted = columnEnd - columnBegin;
  return wanted < MIN_PIECE_BYTES ? rowBytes : wanted;
}

/** Bytes that a chunk reads. */
export function bytesRead(chunk: ChunkRead | RowsRead): number {
  if ("reading" in chunk) return bytesOfRows(chunk);
  const bytes = chunk.end - chunk.begin;
  return isContiguous(chunk) ? bytes : (bytes / chunk.rowBytes) * bytesReadOfRow(chunk);
}

/** Reads chunks on this thread. Holds scratch memory for the largest chunk that needed packing or conversion. */
export class ChunkReader {
  #bytes = new Uint8Array(0);
  #values = new Float32Array(0);

  /**
   * Writes the chunk's wanted elements, packed and converted, to the beginning of `target`, which must be aligned for
   * their dtype; returns their bytes.
   * @throws ModelDataError when the file cannot be read, has become shorter, or holds what no weight may be.
   */
  read(chunk: ChunkRead | RowsRead, target: Uint8Array): Uint8Array {
    return "reading" in chunk ? readRows(chunk, target) : this.#readElements(chunk, target);
  }

  #readElements(chunk: ChunkRead, target: Uint8Array): Uint8Array {
    const { dtype, targetDtype, affine } = chunk;
    const bytes = bytesRead(chunk);
    const isSame = dtype === targetDtype && affine === undefined;
    const direct = isSame && isPacked(chunk);
    const source = direct ? target.subarray(0, bytes) : this.#scratch(bytes);
    invariant(source.length === bytes, `${bytes} bytes for a target of ${target.length}`);
    readElementRows(chunk, source);
    if (direct) return source;

    const packed = isPacked(chunk) ? source : packColumns(chunk, source);
    const count = elementsOf(chunk);
    const result = target.subarray(0, count * dtypeSize(targetDtype));
    invariant(
      result.length === count * dtypeSize(targetDtype),
      `${count} elements for ${target.length} bytes`,
    );
    if (isSame) result.set(packed);
    else this.#convert(packed, chunk, result);
    return result;
  }

  #convert(source: Uint8Array, chunk: ChunkRead, target: Uint8Array): void {
    const { targetDtype, trim, affine } = chunk;
    const count = elementsIn(source.length, chunk);
    if (targetDtype === "float32" && trim === undefined && affine === undefined) {
      decodeChunk(source, chunk, new Float32Array(target.buffer, target.byteOffset, count));
      return;
    }
    const decoded = this.#decoded(source, chunk, count);
    const stored = trim === undefined ? decoded : packTrimmed(decoded, chunk, trim);
    const values = affine === undefined ? stored : stored.map((x) => x * affine.scale + affine.offset);
    if (targetDtype === "float16")
      new Float16Array(target.buffer, target.byteOffset, values.length).set(values);
    else target.set(narrow(values, targetDtype));
  }

  #decoded(source: Uint8Array, chunk: ChunkRead, count: number): Float32Array {
    if (chunk.dtype === "float32") return new Float32Array(source.buffer, source.byteOffset, count);
    if (this.#values.length < count) this.#values = new Float32Array(count);
    const values = this.#values.subarray(0, count);
    decodeChunk(source, chunk, values);
    return values;
  }

  #scratch(length: number): Uint8Array {
    if (this.#bytes.length < length) this.#bytes = new Uint8Array(length);
    return this.#bytes.subarray(0, length);
  }
}

/** Fills `target` with the elements of `source`. @throws ModelDataError for a block whose scale is infinite or NaN */
function decodeChunk(source: Uint8Array, { path, name, dtype }: ChunkRead, target: Float32Array): void {
  decode(source, dtype, target);
  if (!isBlockType(dtype)) return;
  const { elements } = unitOf(dtype);
  // No element of a block is finite if one of its float16 is not: 0 times infinity is NaN.
  for (let first = 0; first < target.length; first += elements)
    if (!Number.isFinite(target[first]!))
      throw new ModelDataError(path, `tensor "${name}" has a scale that is no finite number`);
}

/** True if a chunk's wanted bytes lie side by side once they are read. */
function isPacked(chunk: ChunkRead): boolean {
  return isContiguous(chunk) || bytesReadOfRow(chunk) < chunk.rowBytes;
}

/** Fills `target` with what is read of each row. */
function readElementRows(chunk: ChunkRead, target: Uint8Array): void {
  const { path, fd, begin, end, rowBytes, columnBegin } = chunk;
  const piece = bytesReadOfRow(chunk);
  if (piece === rowBytes) readFully(path, fd, target, begin);
  else {
    for (let row = begin, at = 0; row < end; row += rowBytes, at += piece)
      readFully(path, fd, target.subarray(at, at + piece), row + columnBegin);
  }
}

/** Moves the wanted columns of whole rows to the front, in place. */
function packColumns({ rowBytes, columnBegin, columnEnd }: ChunkRead, rows: Uint8Array): Uint8Array {
  let packed = 0;
  for (let row = 0; row < rows.length; row += rowBytes, packed += columnEnd - columnBegin)
    rows.copyWithin(packed, row + columnBegin, row + columnEnd);
  return rows.subarray(0, packed);
}

/** Moves the wanted elements of the rows' blocks to the front, in place. */
function packTrimmed(
  values: Float32Array,
  chunk: ChunkRead,
  { start, end }: { readonly start: number; readonly end: number },
): Float32Array {
  const width = elementsIn(chunk.columnEnd - chunk.columnBegin, chunk);
  let packed = 0;
  for (let row = 0; row < values.length; row += width, packed += end - start)
    values.copyWithin(packed, row + start, row + end);
  return values.subarray(0, packed);
}
