import type { SuperblocksReading } from "../../base/reading.ts";
import type { Span } from "../../base/shard.ts";
import { lengthOf } from "../../base/shard.ts";
import { blockOf, minimumOf, scaleOf } from "../../gguf/dequantize.ts";
import { type ByteMatrix, readBand, visitBands } from "./band.ts";
import { placeOf, type StoredTensor, tensorError } from "./stored-tensor.ts";

/** Columns of a block. */
export const SUPERBLOCK_COLUMNS = 256;

/** Where the parts of a block begin. Q4_K and Q5_K have d, dmin and 12 bytes of scales and minima at its beginning. */
const FACTORS_AT = 4;
const NIBBLES_AT = { Q4_K: 16, Q5_K: 48, Q6_K: 0 } as const;
const FIFTH_BITS_AT = 16;
const UPPER_BITS_AT = 128;
const Q6_SCALES_AT = 192;
const Q6_UNIT_AT = 208;

/** Bytes of a row's part. */
export function superblockPartBytes(reading: SuperblocksReading): number {
  const { part, bits, groupSize } = reading;
  const width = lengthOf(reading.columns);
  if (part === "codes") return (width * bits) / 8;
  const factors = reading.minima ? 2 : 1;
  return part === "steps" ? (width / groupSize) * factors : (width / SUPERBLOCK_COLUMNS) * 2 * factors;
}

/** Bytes that are read for a row. */
export function superblockRowBytes({ stored, columns }: SuperblocksReading): number {
  return (lengthOf(columns) / SUPERBLOCK_COLUMNS) * blockOf(stored).bytes;
}

/** See `SuperblocksReading`. */
export function readSuperblocks(
  tensor: StoredTensor,
  reading: SuperblocksReading,
  rows: Span,
  target: Uint8Array,
): void {
  const { columns } = reading;
  const { bytes: blockBytes } = blockOf(reading.stored);
  const { path, fd, begin, shape, pairedRows } = tensor;
  const matrix: ByteMatrix = { path, fd, begin, rowBytes: (shape[1]! / SUPERBLOCK_COLUMNS) * blockBytes };
  const bytes = {
    start: (columns.start / SUPERBLOCK_COLUMNS) * blockBytes,
    end: (columns.end / SUPERBLOCK_COLUMNS) * blockBytes,
  };
  const wanted = { start: reading.rows.start + rows.start, end: reading.rows.start + rows.end };
  const write = writerOf(reading, tensor);
  const writtenBytes = target.length / ((lengthOf(rows) * lengthOf(columns)) / SUPERBLOCK_COLUMNS);
  let to = 0;
  const writeBlocks = (band: Uint8Array) => {
    for (let from = 0; from < band.length; from += blockBytes, to += writtenBytes)
      write(band, from, target, to);
  };
  if (pairedRows === undefined) {
    visitBands(matrix, wanted, bytes, writeBlocks);
    return;
  }
  const band = new Uint8Array(lengthOf(bytes));
  for (let row = wanted.start; row < wanted.end; row++) {
    const at = placeOf(row, pairedRows);
    readBand(matrix, { start: at, end: at + 1 }, bytes, band);
    writeBlocks(band);
  }
}

/** Writes the part of the block at `from` to `target`, from `to` on. */
type WriteBlock = (band: Uint8Array, from: number, target: Uint8Array, to: number) => void;

function writerOf(
  { stored, part, bits, groupSize, minima }: SuperblocksReading,
  tensor: StoredTensor,
): WriteBlock {
  const isSix = stored === "Q6_K";
  switch (part) {
    case "codes":
      if (bits === 4) return packNibbles;
      return isSix ? sixBits : nibblesAndFifth(NIBBLES_AT[stored], stored === "Q5_K");
    case "steps":
      // Scales of Q6_K are those of 16 columns already, and what its codes' middle makes a minimum of.
      return isSix ? copySteps(minima ? 2 : 1) : unpackSteps(32 / groupSize);
    case "units":
      if (!isSix) return writeUnits([0, 1], [2, 1], tensor);
      return writeUnits([Q6_UNIT_AT, 1], minima ? [Q6_UNIT_AT, 32] : undefined, tensor);
  }
}

/** Q4_K's nibbles, of which 32 bytes have 32 columns in their low halves and the next 32 in the high ones, to two neighbours a byte. */
const packNibbles: WriteBlock = (band, from, target, to) => {
  for (let pair = 0; pair < 128; pair += 32) {
    const [source, out] = [from + NIBBLES_AT.Q4_K + pair, to + pair];
    for (let i = 0; i < 16; i++) {
      const even = band[source + 2 * i]!;
      const odd = band[source + 2 * i + 1]!;
      target[out + i] = (even & 15) | ((odd & 15) << 4);
      target[out + 16 + i] = (even >> 4) | (odd & 0xf0);
    }
  }
};

/** The same nibbles to a byte each, with Q5_K's fifth bits. */
function nibblesAndFifth(nibblesAt: number, hasFifth: boolean): WriteBlock {
  return (band, from, target, to) => {
    for (let pair = 0; pair < 4; pair++) {
      const [source, out] = [from + nibblesAt + 32 * pair, to + 64 * pair];
      for (let i = 0; i < 32; i++) {
        const byte = band[source + i]!;
        const fifth = hasFifth ? band[from + FIFTH_BITS_AT + i]! >> (2 * pair) : 0;
        target[out + i] = (byte & 15) | ((fifth & 1) << 4);
        target[out + 32 + i] = (byte >> 4) | ((fifth & 2) << 3);
      }
    }
  };
}

/** Q6_K's nibbles and upper pairs of bits. */
const sixBits: WriteBlock = (band, from, target, to) => {
  for (let half = 0; half < 2; half++) {
    const [low, high, out] = [from + 64 * half, from + UPPER_BITS_AT + 32 * half, to + 128 * half];
    for (let i = 0; i < 32; i++) {
      const [a, b, bits] = [band[low + i]!, band[low + 32 + i]!, band[high + i]!];
      target[out + i] = (a & 15) | ((bits & 3) << 4);
      target[out + 32 + i] = (b & 15) | ((bits & 12) << 2);
      target[out + 64 + i] = (a >> 4) | (bits & 48);
      target[out + 96 + i] = (b >> 4) | ((bits & 192) >> 2);
    }
  }
};

/** Q6_K's signed bytes, each `repeat` times. */
function copySteps(repeat: number): WriteBlock {
  return (band, from, target, to) => {
    for (let i = 0; i < 16 * repeat; i++)
      target[to + i] = band[from + Q6_SCALES_AT + Math.floor(i / repeat)]!;
  };
}

/** Eight pairs of integers of 6 bits, each pair `repeat` times. */
function unpackSteps(repeat: number): WriteBlock {
  return (band, from, target, to) => {
    for (let i = 0; i < 8 * repeat; i++) {
      const j = Math.floor(i / repeat);
      target[to + 2 * i] = scaleOf(band, from + FACTORS_AT, j);
      target[to + 2 * i + 1] = minimumOf(band, from + FACTORS_AT, j);
    }
  };
}

/** A float16 of a block, and the power of two that it is multiplied by. */
type Unit = readonly [at: number, factor: number];

function writeUnits(scale: Unit, minimum: Unit | undefined, tensor: StoredTensor): WriteBlock {
  const value = new Float16Array(1);
  const bytes = new Uint8Array(value.buffer);
  const units = minimum === undefined ? [scale] : [scale, minimum];
  return (band, from, target, to) => {
    for (const [i, [at, factor]] of units.entries()) {
      bytes[0] = band[from + at]!;
      bytes[1] = band[from + at + 1]!;
      value[0] = factor * value[0]!;
      if (!Number.isFinite(value[0])) throw tensorError(tensor, "has a scale that is no finite number");
      target[to + 2 * i] = bytes[0]!;
      target[to + 2 * i + 1] = bytes[1]!;
    }
  };
}
