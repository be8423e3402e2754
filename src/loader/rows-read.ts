import type { DType } from "../base/dtype.ts";
import { dtypeSize } from "../base/dtype.ts";
import type { Reading } from "../base/reading.ts";
import { lengthOf, type Span } from "../base/shard.ts";
import { BLOCK_COLUMNS, readBlocks } from "./readings/blocks.ts";
import { readBytes } from "./readings/bytes.ts";
import { readCodes } from "./readings/codes.ts";
import { readFloat8 } from "./readings/float8.ts";
import { readHalves } from "./readings/halves.ts";
import { readScales } from "./readings/scales.ts";
import type { StoredTensor } from "./readings/stored-tensor.ts";
import { readSuperblocks, superblockPartBytes, superblockRowBytes } from "./readings/superblocks.ts";
import { readTransposed } from "./readings/transposed.ts";
import { FLOATS } from "./stored-dtype.ts";

/** Rows of a parameter that a `Reading` gives of a tensor. Plain data, so that it can be sent to a Worker. */
export interface RowsRead {
  readonly reading: Reading;
  readonly tensor: StoredTensor;
  /** Of those that the reading gives, counted from its first. */
  readonly rows: Span;
}

/** The shape of the rows that a reading gives, and of their elements. */
export interface RowsForm {
  readonly count: number;
  readonly width: number;
  readonly dtype: DType;
  /** Rows that are best read together: where a chunk has room for them, chunks begin at multiples of them. */
  readonly step: number;
  /** Bytes of a row in memory, or those that are read for it if there are many more. */
  readonly cost: number;
}

/** Formats' names of the dtypes that a reading takes. */
export function storedDtypes(reading: Reading): readonly string[] {
  const { kind } = reading;
  if ("stored" in reading) return [reading.stored];
  if (kind === "scales") return ["F32", "BF16", "F16", "F8_E8M0"];
  return kind === "codes" ? ["I32"] : [...FLOATS.keys()];
}

export function formOf(reading: Reading): RowsForm {
  if (reading.kind === "given")
    return { count: reading.values.length, width: 1, dtype: "int32", step: 1, cost: 4 };
  const [rows, columns] = [lengthOf(reading.rows), lengthOf(reading.columns)];
  const form = (width: number, dtype: DType, step = 1): RowsForm => ({
    ...{ count: rows, width, dtype, step, cost: width * dtypeSize(dtype) },
  });
  switch (reading.kind) {
    case "bytes":
      if (reading.stored === "F8_E4M3") return form(columns, "float8_e4m3");
      return form(reading.stored === "I32" ? 4 * columns : columns, "uint8");
    case "transposed":
      return form(columns, reading.dtype);
    case "halves":
      return form(columns, reading.stored === "F16" ? "float16" : "bfloat16");
    case "scales":
      return form(columns, "float32");
    case "codes": {
      const width = reading.packed ? (columns * reading.bits) / 8 : columns;
      return form(width, "uint8", reading.along === "column" ? 32 / reading.bits : 1);
    }
    case "blocks": {
      if (reading.part === "scales") return form(columns / BLOCK_COLUMNS, "float16");
      return form(reading.stored === "Q4_0" ? columns / 2 : columns, "uint8");
    }
    case "superblocks": {
      const [bytes, cost] = [superblockPartBytes(reading), superblockRowBytes(reading)];
      const isUnits = reading.part === "units";
      return {
        ...(isUnits ? form(bytes / 2, "float16") : form(bytes, "uint8")),
        cost: Math.max(bytes, cost),
      };
    }
    case "float8": {
      const { part, blockRows, blockColumns } = reading;
      if (part === "codes") return form(columns, "float8_e4m3", blockRows);
      const scales = form(Math.ceil(columns / blockColumns), "float32");
      return { ...scales, count: Math.ceil(rows / blockRows), cost: columns };
    }
  }
}

/**
 * Writes the rows to the beginning of `target`, which must be aligned for words; returns their bytes.
 * @throws ModelDataError when the file cannot be read, or holds what the reading does not allow.
 */
export function readRows(read: RowsRead, target: Uint8Array): Uint8Array {
  const { reading, tensor, rows } = read;
  const { width, dtype } = formOf(reading);
  const result = target.subarray(0, lengthOf(rows) * width * dtypeSize(dtype));
  switch (reading.kind) {
    case "given": {
      const { buffer, byteOffset } = reading.values.slice(rows.start, rows.end);
      result.set(new Uint8Array(buffer, byteOffset, result.length));
      break;
    }
    case "bytes":
      readBytes(tensor, reading, rows, result);
      break;
    case "transposed":
      readTransposed(tensor, reading, rows, result);
      break;
    case "halves":
      readHalves(tensor, reading, rows, result);
      break;
    case "scales":
      readScales(tensor, reading, rows, result);
      break;
    case "codes":
      readCodes(tensor, reading, rows, result);
      break;
    case "blocks":
      readBlocks(tensor, reading, rows, result);
      break;
    case "superblocks":
      readSuperblocks(tensor, reading, rows, result);
      break;
    case "float8":
      readFloat8(tensor, reading, rows, result);
  }
  return result;
}

/** Bytes of the file that rows are made of: their share of the tensor. */
export function bytesOfRows({ tensor, reading, rows }: RowsRead): number {
  const { count } = formOf(reading);
  const bytesUpTo = (row: number) => Math.floor((wantedBytes(tensor, reading) * row) / count);
  return bytesUpTo(rows.end) - bytesUpTo(rows.start);
}

function wantedBytes({ begin, end, shape }: StoredTensor, reading: Reading): number {
  if (reading.kind === "given") return end - begin;
  const elements = shape.reduce((product, extent) => product * extent, 1);
  const each = reading.kind === "codes" ? 32 / reading.bits : reading.kind === "scales" ? reading.repeat : 1;
  const wanted = lengthOf(reading.rows) * lengthOf(reading.columns);
  return (end - begin) * Math.min(1, wanted / (elements * each));
}
