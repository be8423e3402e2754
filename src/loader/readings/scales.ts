import { widen } from "../../base/dtype.ts";
import { readFully } from "../../base/read-fully.ts";
import type { ScalesReading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { type StoredTensor, tensorError } from "./stored-tensor.ts";

const DTYPES = { F32: "float32", BF16: "bfloat16", F16: "float16" } as const;

/** See `ScalesReading`. A tensor of rank 0 is one row, one of rank 1 a column; of more, all dimensions but the first are a row. */
export function readScales(
  tensor: StoredTensor,
  reading: ScalesReading,
  rows: Span,
  target: Uint8Array,
): void {
  const { repeat, columns } = reading;
  const width = lengthOf(columns);
  const storedWidth = tensor.shape.slice(1).reduce((product, extent) => product * extent, 1);
  const first = reading.rows.start + rows.start;
  const last = reading.rows.start + rows.end;
  const stored = { start: Math.floor(first / repeat), end: Math.ceil(last / repeat) };
  const values = readFloats(tensor, stored.start * storedWidth, stored.end * storedWidth);
  if (!values.every(Number.isFinite)) throw tensorError(tensor, "has a scale that is no finite number");
  const out = new Float32Array(target.buffer, target.byteOffset, lengthOf(rows) * width);
  for (let row = first; row < last; row++) {
    const at = (Math.floor(row / repeat) - stored.start) * storedWidth;
    out.set(values.subarray(at + columns.start, at + columns.end), (row - first) * width);
  }
}

/** Elements `[start, end)`. */
function readFloats({ path, fd, dtype, begin }: StoredTensor, start: number, end: number): Float32Array {
  const values = new Float32Array(end - start);
  const size = dtype === "F32" ? 4 : dtype === "F8_E8M0" ? 1 : 2;
  const bytes = new Uint8Array(values.length * size);
  readFully(path, fd, bytes, begin + start * size);
  if (dtype === "F8_E8M0") for (const [i, code] of bytes.entries()) values[i] = powerOfTwo(code);
  else widen(bytes, DTYPES[dtype as keyof typeof DTYPES], values);
  return values;
}

/** The value of a code of F8_E8M0, of which 255 is NaN. */
function powerOfTwo(code: number): number {
  return code === 255 ? Number.NaN : 2 ** (code - 127);
}
