import { readFully } from "../../base/read-fully.ts";
import type { Span } from "../../base/shard.ts";

/** A read from the page cache takes about as long as copying so many bytes: what lies between two rows' wanted bytes is read too if it is less. */
const READ_COST_BYTES = 8192;
const BATCH_BYTES = 2 ** 20;

/** A tensor in a file as a matrix of bytes. */
export interface ByteMatrix {
  readonly path: string;
  readonly fd: number;
  /** Where it begins in the file. */
  readonly begin: number;
  readonly rowBytes: number;
}

/** Reads bytes `columns` of `rows` to the beginning of `target`, packed. */
export function readBand(
  { path, fd, begin, rowBytes }: ByteMatrix,
  rows: Span,
  columns: Span,
  target: Uint8Array,
): void {
  const piece = columns.end - columns.start;
  const count = rows.end - rows.start;
  if (piece === rowBytes) {
    readFully(path, fd, target.subarray(0, count * piece), begin + rows.start * rowBytes);
    return;
  }
  if (rowBytes - piece > READ_COST_BYTES) {
    for (let i = 0; i < count; i++) {
      const at = begin + (rows.start + i) * rowBytes + columns.start;
      readFully(path, fd, target.subarray(i * piece, (i + 1) * piece), at);
    }
    return;
  }
  const batch = Math.min(count, Math.max(1, Math.floor(BATCH_BYTES / rowBytes)));
  const whole = new Uint8Array(batch * rowBytes);
  for (let first = 0; first < count; first += batch) {
    const some = Math.min(batch, count - first);
    readFully(path, fd, whole.subarray(0, some * rowBytes), begin + (rows.start + first) * rowBytes);
    for (let i = 0; i < some; i++) {
      const at = i * rowBytes + columns.start;
      target.set(whole.subarray(at, at + piece), (first + i) * piece);
    }
  }
}

/** Rows of a band are a multiple of this, but for the last band's. */
export const BAND_ROWS = 8;

/**
 * Calls `visit` with bands of a matrix of some 1 MiB from its first wanted row on. The memory is the caller's to read until
 * `visit` returns; it is aligned for words.
 */
export function visitBands(
  matrix: ByteMatrix,
  rows: Span,
  columns: Span,
  visit: (band: Uint8Array<ArrayBuffer>, rows: Span) => void,
): void {
  const piece = columns.end - columns.start;
  const batch = BAND_ROWS * Math.max(1, Math.floor(BATCH_BYTES / (BAND_ROWS * piece)));
  const band = new Uint8Array(Math.min(batch, rows.end - rows.start) * piece);
  for (let start = rows.start; start < rows.end; start += batch) {
    const some = { start, end: Math.min(start + batch, rows.end) };
    const bytes = band.subarray(0, (some.end - start) * piece);
    readBand(matrix, some, columns, bytes);
    visit(bytes, some);
  }
}
