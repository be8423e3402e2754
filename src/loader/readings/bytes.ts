import type { BytesReading } from "../../base/reading.ts";
import type { Span } from "../../base/shard.ts";
import { readBand } from "./band.ts";
import { byteMatrix, type StoredTensor, tensorError } from "./stored-tensor.ts";

/** See `BytesReading`. */
export function readBytes(tensor: StoredTensor, reading: BytesReading, rows: Span, target: Uint8Array): void {
  const size = reading.stored === "I32" ? 4 : 1;
  const { start } = reading.rows;
  const matrix = byteMatrix(tensor, size);
  const { rowBytes, start: shift } = tensor.within ?? { rowBytes: matrix.rowBytes, start: 0 };
  const columns = { start: shift + reading.columns.start * size, end: shift + reading.columns.end * size };
  readBand({ ...matrix, rowBytes }, { start: start + rows.start, end: start + rows.end }, columns, target);
  if (reading.stored === "I8") for (let i = 0; i < target.length; i++) target[i]! ^= 0x80;
  const { most = 255 } = reading;
  if (most < 255 && target.some((byte) => byte > most))
    throw tensorError(tensor, `has a value above ${most}`);
  if (reading.stored === "F8_E4M3" && hasNaN(target)) throw tensorError(tensor, "has a NaN");
}

/** True if some code of float8_e4m3 is NaN: 7 bits of ones below the sign. */
function hasNaN(codes: Uint8Array): boolean {
  const whole = codes.byteOffset % 4 === 0 ? Math.floor(codes.length / 4) : 0;
  const words = new Int32Array(codes.buffer, whole === 0 ? 0 : codes.byteOffset, whole);
  // Adding 1 to 7 ones, and only to them, sets a byte's highest bit, which was cleared.
  for (let i = 0; i < words.length; i++)
    if (((words[i]! & 0x7f7f_7f7f) + 0x0101_0101) & 0x8080_8080) return true;
  for (let i = 4 * whole; i < codes.length; i++) if ((codes[i]! & 0x7f) === 0x7f) return true;
  return false;
}
