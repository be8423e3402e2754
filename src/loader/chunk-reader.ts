import { dtypeSize, type FloatDType, narrow, widen } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import { readFully } from "./read-fully.ts";

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

/** Whether the wanted bytes of a chunk lie side by side in the file. */
export function isContiguous({ rowBytes, columnBegin, columnEnd }: ChunkRead): boolean {
  return columnEnd - columnBegin === rowBytes;
}

/** Reads chunks on this thread. Holds scratch memory for the largest chunk that needed packing or conversion. */
export class ChunkReader {
  #scratch = new Uint8Array(0);

  /**
   * Writes the chunk's wanted elements, packed and converted, to the beginning of `target`; returns their bytes.
   * @throws ModelDataError when the file cannot be read or has become shorter.
   */
  read(chunk: ChunkRead, target: Uint8Array): Uint8Array {
    const length = chunk.end - chunk.begin;
    const converts = chunk.dtype !== chunk.targetDtype;
    const direct = !converts && isContiguous(chunk);
    const source = direct ? target.subarray(0, length) : this.#scratchOf(length);
    invariant(source.length === length, `chunk of ${length} bytes for a target of ${target.length}`);
    readFully(chunk.path, chunk.fd, source, chunk.begin);
    if (direct) return source;

    const packed = packColumns(chunk, source);
    const bytes = converts ? convert(packed, chunk.dtype, chunk.targetDtype) : packed;
    invariant(bytes.length <= target.length, `${bytes.length} bytes for a target of ${target.length}`);
    target.set(bytes);
    return target.subarray(0, bytes.length);
  }

  #scratchOf(length: number): Uint8Array {
    if (this.#scratch.length < length) this.#scratch = new Uint8Array(length);
    return this.#scratch.subarray(0, length);
  }
}

/** Moves the wanted columns of whole rows to the front, in place. */
function packColumns(chunk: ChunkRead, rows: Uint8Array): Uint8Array {
  if (isContiguous(chunk)) return rows;
  const { rowBytes, columnBegin, columnEnd } = chunk;
  let packed = 0;
  for (let row = 0; row < rows.length; row += rowBytes, packed += columnEnd - columnBegin)
    rows.copyWithin(packed, row + columnBegin, row + columnEnd);
  return rows.subarray(0, packed);
}

function convert(bytes: Uint8Array, from: FloatDType, to: FloatDType): Uint8Array {
  const count = bytes.length / dtypeSize(from);
  const isFloat32 = from === "float32";
  const values = isFloat32
    ? new Float32Array(bytes.buffer, bytes.byteOffset, count)
    : new Float32Array(count);
  if (!isFloat32) widen(bytes, from, values);
  return to === "float32" ? new Uint8Array(values.buffer) : narrow(values, to);
}
