import type { BlocksReading } from "../../base/reading.ts";
import { lengthOf, type Span } from "../../base/shard.ts";
import { blockOf } from "../../gguf/dequantize.ts";
import { type ByteMatrix, readBand, visitBands } from "./band.ts";
import { placeOf, type StoredTensor, tensorError } from "./stored-tensor.ts";

/** Columns of a block, of either type. */
export const BLOCK_COLUMNS = 32;
const SCALE_BYTES = 2;

/** See `BlocksReading`. */
export function readBlocks(
  tensor: StoredTensor,
  reading: BlocksReading,
  rows: Span,
  target: Uint8Array,
): void {
  const { stored, part, columns } = reading;
  const { bytes: blockBytes } = blockOf(stored);
  const { path, fd, begin, shape, pairedRows } = tensor;
  const matrix: ByteMatrix = { path, fd, begin, rowBytes: (shape[1]! / BLOCK_COLUMNS) * blockBytes };
  const bytes = {
    start: (columns.start / BLOCK_COLUMNS) * blockBytes,
    end: (columns.end / BLOCK_COLUMNS) * blockBytes,
  };
  const wanted = { start: reading.rows.start + rows.start, end: reading.rows.start + rows.end };
  const write = part === "scales" ? copyScale : stored === "Q4_0" ? packHalves : toUnsigned;
  const writtenBytes = target.length / ((lengthOf(rows) * lengthOf(columns)) / BLOCK_COLUMNS);
  let to = 0;
  const writeBlocks = (band: Uint8Array) => {
    for (let from = 0; from < band.length; from += blockBytes, to += writtenBytes) {
      if (!hasFiniteScale(band, from)) throw tensorError(tensor, "has a scale that is no finite number");
      write(band, from, target, to);
    }
  };
  if (pairedRows === undefined) visitBands(matrix, wanted, bytes, writeBlocks);
  else {
    const band = new Uint8Array(lengthOf(bytes));
    for (let row = wanted.start; row < wanted.end; row++) {
      const at = placeOf(row, pairedRows);
      readBand(matrix, { start: at, end: at + 1 }, bytes, band);
      writeBlocks(band);
    }
  }
}

/** True if the float16 that a block begins with is neither infinite nor NaN. */
function hasFiniteScale(band: Uint8Array, at: number): boolean {
  return (band[at + 1]! & 0x7c) !== 0x7c;
}

type WriteBlock = (band: Uint8Array, from: number, target: Uint8Array, to: number) => void;

const copyScale: WriteBlock = (band, from, target, to) => {
  target[to] = band[from]!;
  target[to + 1] = band[from + 1]!;
};

/** Nibbles whose low halves are the block's first 16 codes, to two neighbours a byte. */
const packHalves: WriteBlock = (band, from, target, to) => {
  for (let i = 0; i < 8; i++) {
    const even = band[from + SCALE_BYTES + 2 * i]!;
    const odd = band[from + SCALE_BYTES + 2 * i + 1]!;
    target[to + i] = (even & 15) | ((odd & 15) << 4);
    target[to + 8 + i] = (even >> 4) | (odd & 0xf0);
  }
};

/** Signed bytes to unsigned ones, 128 more. */
const toUnsigned: WriteBlock = (band, from, target, to) => {
  for (let i = 0; i < 32; i++) target[to + i] = band[from + SCALE_BYTES + i]! ^ 0x80;
};
