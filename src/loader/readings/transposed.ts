import { dtypeSize, narrow, widen } from "../../base/dtype.ts";
import type { TransposedReading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { FLOATS } from "../stored-dtype.ts";
import { visitBands } from "./band.ts";
import type { StoredTensor } from "./stored-tensor.ts";

/** See `TransposedReading`. */
export function readTransposed(
  { path, fd, begin, dtype: name, shape }: StoredTensor,
  { dtype, start, stride, ...wanted }: TransposedReading,
  rows: Span,
  target: Uint8Array,
): void {
  const stored = FLOATS.get(name)!;
  const size = dtypeSize(stored);
  const [count, width] = [lengthOf(rows), lengthOf(wanted.columns)];
  const first = start + (wanted.rows.start + rows.start) * stride;
  // The last row's column is the last that is read: what lies behind it may be the end of the file.
  const bytes = { start: first * size, end: (first + (count - 1) * stride + 1) * size };
  const matrix = { path, fd, begin, rowBytes: shape[0]! * stride * size };
  const isSame = stored === dtype && size === 2;
  const values = isSame ? undefined : new Float32Array(count * width);
  const halves = isSame ? new Uint16Array(target.buffer, target.byteOffset, count * width) : undefined;
  visitBands(matrix, wanted.columns, bytes, (band, { start: column, end }) => {
    const piece = lengthOf(bytes) / size;
    const from = halves
      ? new Uint16Array(band.buffer, band.byteOffset, band.length / 2)
      : widened(band, stored);
    const to = halves ?? values!;
    for (let k = column; k < end; k++) {
      let at = k - wanted.columns.start;
      const past = (k - column + 1) * piece;
      for (let i = (k - column) * piece; i < past; i += stride, at += width) to[at] = from[i]!;
    }
  });
  if (values === undefined) return;
  if (dtype === "float32") new Float32Array(target.buffer, target.byteOffset, values.length).set(values);
  else if (dtype === "float16") new Float16Array(target.buffer, target.byteOffset, values.length).set(values);
  else target.set(narrow(values, dtype));
}

function widened(bytes: Uint8Array, dtype: Parameters<typeof widen>[1]): Float32Array {
  const values = new Float32Array(bytes.length / dtypeSize(dtype));
  widen(bytes, dtype, values);
  return values;
}
