import type { HalvesReading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { visitBands } from "./band.ts";
import { byteMatrix, type StoredTensor, tensorError } from "./stored-tensor.ts";

/** The bits of a float's exponent, all of which are set in what is infinite or NaN. */
const EXPONENT = { F16: 0x7c00, BF16: 0x7f80 } as const;

/** See `HalvesReading`. */
export function readHalves(
  tensor: StoredTensor,
  { stored, transposed, ...wanted }: HalvesReading,
  rows: Span,
  target: Uint8Array,
): void {
  const matrix = { start: wanted.rows.start + rows.start, end: wanted.rows.start + rows.end };
  const [count, width] = [lengthOf(rows), lengthOf(wanted.columns)];
  const out = new Uint16Array(target.buffer, target.byteOffset, count * width);
  const exponent = EXPONENT[stored];
  const [outer, inner] = transposed ? [wanted.columns, matrix] : [matrix, wanted.columns];
  const [alongOuter, alongInner] = transposed ? [1, width] : [width, 1];
  const bytes = { start: 2 * inner.start, end: 2 * inner.end };
  visitBands(byteMatrix(tensor, 2), outer, bytes, (band, { start }) => {
    const values = new Uint16Array(band.buffer, band.byteOffset, band.length / 2);
    for (let o = start - outer.start, i = 0; i < values.length; o++) {
      for (let at = o * alongOuter, end = i + lengthOf(inner); i < end; i++, at += alongInner) {
        const value = values[i]!;
        if ((value & exponent) === exponent)
          throw tensorError(tensor, "has a scale that is no finite number");
        out[at] = value;
      }
    }
  });
}
