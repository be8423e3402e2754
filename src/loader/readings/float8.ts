import { dtypeSize, widen } from "../../base/dtype.ts";
import { encodeFloat8, FLOAT8_MAX } from "../../base/float8.ts";
import type { Float8Reading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { type ByteMatrix, readBand } from "./band.ts";
import { byteMatrix, placeOf, type StoredTensor, tensorError } from "./stored-tensor.ts";

const DTYPES = { F32: "float32", BF16: "bfloat16", F16: "float16" } as const;

/** See `Float8Reading`. The largest value of a block becomes ±448; a block of zeros has the factor 1. */
export function readFloat8(
  tensor: StoredTensor,
  reading: Float8Reading,
  rows: Span,
  target: Uint8Array,
): void {
  const { part, blockRows, blockColumns, columns } = reading;
  const all = lengthOf(reading.rows);
  const width = lengthOf(columns);
  const source = new RowBlocks(tensor, columns);
  const blocks =
    part === "scales"
      ? rows
      : { start: Math.floor(rows.start / blockRows), end: Math.ceil(rows.end / blockRows) };
  for (let block = blocks.start; block < blocks.end; block++) {
    const first = block * blockRows;
    const last = Math.min(first + blockRows, all);
    const values = source.read({ start: reading.rows.start + first, end: reading.rows.start + last });
    const scales = scalesOf(values, width, blockColumns, tensor);
    if (part === "scales") {
      const out = new Float32Array(target.buffer, target.byteOffset, target.length / 4);
      out.set(scales, (block - rows.start) * scales.length);
      continue;
    }
    for (let row = Math.max(first, rows.start); row < Math.min(last, rows.end); row++) {
      const from = values.subarray((row - first) * width, (row - first + 1) * width);
      const to = target.subarray((row - rows.start) * width, (row - rows.start + 1) * width);
      for (const [i, scale] of scales.entries()) {
        const [start, end] = [i * blockColumns, (i + 1) * blockColumns];
        encodeFloat8(from.subarray(start, end), 1 / scale, to.subarray(start, end));
      }
    }
  }
}

/** Reads rows of a tensor of floats, one block after another, into the same memory. */
class RowBlocks {
  #bytes = new Uint8Array(0);
  #values = new Float32Array(0);

  constructor(
    private readonly tensor: StoredTensor,
    private readonly columns: Span,
  ) {}

  read(rows: Span): Float32Array {
    const dtype = DTYPES[this.tensor.dtype as keyof typeof DTYPES];
    const size = dtypeSize(dtype);
    const count = lengthOf(rows) * lengthOf(this.columns);
    if (this.#values.length < count) {
      this.#bytes = new Uint8Array(count * size);
      this.#values = new Float32Array(count);
    }
    const bytes = this.#bytes.subarray(0, count * size);
    const columns = { start: this.columns.start * size, end: this.columns.end * size };
    this.#readRows(byteMatrix(this.tensor, size), rows, columns, bytes);
    const values = this.#values.subarray(0, count);
    widen(bytes, dtype, values);
    return values;
  }

  #readRows(matrix: ByteMatrix, rows: Span, columns: Span, target: Uint8Array): void {
    const { pairedRows } = this.tensor;
    if (pairedRows === undefined) {
      readBand(matrix, rows, columns, target);
      return;
    }
    const rowBytes = lengthOf(columns);
    for (let row = rows.start, at = 0; row < rows.end; row++, at += rowBytes) {
      const place = placeOf(row, pairedRows);
      readBand(matrix, { start: place, end: place + 1 }, columns, target.subarray(at, at + rowBytes));
    }
  }
}

/** The factor of each block of columns. */
function scalesOf(
  values: Float32Array,
  width: number,
  blockColumns: number,
  tensor: StoredTensor,
): Float32Array {
  // Magnitudes are ordered like their bits, and what is not finite comes last.
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const largest = new Uint32Array(Math.ceil(width / blockColumns));
  for (let row = 0; row < words.length; row += width) {
    for (let block = 0; block < largest.length; block++) {
      const end = row + Math.min((block + 1) * blockColumns, width);
      let most = largest[block]!;
      for (let i = row + block * blockColumns; i < end; i++) {
        const size = words[i]! & 0x7fff_ffff;
        if (size > most) most = size;
      }
      largest[block] = most;
    }
  }
  const sizes = new Float32Array(largest.buffer);
  if (!sizes.every(Number.isFinite)) throw tensorError(tensor, "has a value that is no finite number");
  return sizes.map((most) => (most === 0 ? 1 : Math.max(most / FLOAT8_MAX, SMALLEST_SCALE)));
}

/** Scales of less would be subnormal. */
const SMALLEST_SCALE = 2 ** -126;
