import { dtypeSize, type FloatDType, narrow, widen } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { readFully } from "./read-fully.ts";
import { bytesOfRows, type RowsRead, readRows } from "./rows-read.ts";

/** A piece of a file that becomes a piece of a parameter. Plain data, so that it can be sent to a Worker. */
export interface ChunkRead {
  readonly path: string;
  /** Of the open file: descriptors are the process's, good on every thread. */
  readonly fd: number;
  /** Byte offsets in the file: whole elements, and whole rows when only some columns are wanted. */
  readonly begin: number;
  readonly end: number;
  /** Bytes of a row in the file; of each row the bytes `[columnBegin, columnEnd)` are wanted. */
  readonly rowBytes: number;
  readonly columnBegin: number;
  readonly columnEnd: number;
  readonly dtype: FloatDType;
  readonly targetDtype: FloatDType;
}

/**
 * The shortest part of a row that is read by itself, where only some columns are wanted: below, what lies between is on
 * the same pages anyway.
 */
const MIN_PIECE_BYTES = 4096;

/** True if the wanted bytes of a chunk lie side by side in the file. */
export function isContiguous({ rowBytes, columnBegin, columnEnd }: ChunkRead): boolean {
  return columnEnd - columnBegin === rowBytes;
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
   * @throws ModelDataError when the file cannot be read or has become shorter.
   */
  read(chunk: ChunkRead | RowsRead, target: Uint8Array): Uint8Array {
    return "reading" in chunk ? readRows(chunk, target) : this.#readElements(chunk, target);
  }

  #readElements(chunk: ChunkRead, target: Uint8Array): Uint8Array {
    const { dtype, targetDtype } = chunk;
    const bytes = bytesRead(chunk);
    const direct = dtype === targetDtype && isPacked(chunk);
    const source = direct ? target.subarray(0, bytes) : this.#scratch(bytes);
    invariant(source.length === bytes, `${bytes} bytes for a target of ${target.length}`);
    readElementRows(chunk, source);
    if (direct) return source;

    const packed = isPacked(chunk) ? source : packColumns(chunk, source);
    const count = packed.length / dtypeSize(dtype);
    const result = target.subarray(0, count * dtypeSize(targetDtype));
    invariant(
      result.length === count * dtypeSize(targetDtype),
      `${count} elements for ${target.length} bytes`,
    );
    if (dtype === targetDtype) result.set(packed);
    else this.#convert(packed, dtype, result, targetDtype, count);
    return result;
  }

  #convert(source: Uint8Array, from: FloatDType, target: Uint8Array, to: FloatDType, count: number): void {
    if (to === "float32") {
      widen(source, from, new Float32Array(target.buffer, target.byteOffset, count));
      return;
    }
    const values = this.#widened(source, from, count);
    if (to === "float16") new Float16Array(target.buffer, target.byteOffset, count).set(values);
    else target.set(narrow(values, to));
  }

  #widened(source: Uint8Array, dtype: FloatDType, count: number): Float32Array {
    if (dtype === "float32") return new Float32Array(source.buffer, source.byteOffset, count);
    if (this.#values.length < count) this.#values = new Float32Array(count);
    const values = this.#values.subarray(0, count);
    widen(source, dtype, values);
    return values;
  }

  #scratch(length: number): Uint8Array {
    if (this.#bytes.length < length) this.#bytes = new Uint8Array(length);
    return this.#bytes.subarray(0, length);
  }
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
