import type { TransposedReading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { visitBands } from "./band.ts";
import { byteMatrix, type StoredTensor } from "./stored-tensor.ts";

/** See `TransposedReading`. */
export function readTransposed(
  tensor: StoredTensor,
  reading: TransposedReading,
  rows: Span,
  target: Uint8Array,
): void {
  const first = reading.rows.start + rows.start;
  const [count, width] = [lengthOf(rows), lengthOf(reading.columns)];
  const out = new Uint16Array(target.buffer, target.byteOffset, count * width);
  const bytes = { start: 2 * first, end: 2 * (first + count) };
  visitBands(byteMatrix(tensor, 2), reading.columns, bytes, (band, stored) => {
    const values = new Uint16Array(band.buffer, band.byteOffset, band.length / 2);
    for (let column = stored.start - reading.columns.start, i = 0; i < values.length; column++) {
      for (let row = 0; row < count; row++, i++) out[row * width + column] = values[i]!;
    }
  });
}
