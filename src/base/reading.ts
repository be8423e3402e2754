import type { FloatDType } from "./dtype.ts";
import type { Span } from "./shard.ts";

/**
 * How a tensor of a checkpoint becomes the rows of a parameter where it is more than floats converted to another dtype. A reading
 * gives a matrix [N, J]; `rows` and `columns` are the part of it that is wanted. Plain data: Workers are told of it.
 */
export type Reading =
  | GivenReading
  | BytesReading
  | TransposedReading
  | HalvesReading
  | ScalesReading
  | CodesReading
  | BlocksReading
  | SuperblocksReading
  | Float8Reading;

/** Values that were computed of the tensor ahead. */
export interface GivenReading {
  readonly kind: "given";
  readonly stored: "I32";
  readonly values: Int32Array;
}

/**
 * Elements as they are: codes of float8 (F8_E4M3, none of which may be NaN), packed integers (I32) or bytes (U8); I8 becomes U8, 128 more.
 */
export interface BytesReading {
  readonly kind: "bytes";
  readonly stored: "F8_E4M3" | "I32" | "I8" | "U8";
  /** The greatest value that a byte may have, where not all may be. */
  readonly most?: number;
  readonly rows: Span;
  readonly columns: Span;
}

/** Floats, converted to another dtype: row n is column start + n · stride of the stored matrix [J, N · stride]. */
export interface TransposedReading {
  readonly kind: "transposed";
  readonly dtype: FloatDType;
  readonly start: number;
  readonly stride: number;
  readonly rows: Span;
  readonly columns: Span;
}

/** Scales of groups, 16-bit floats that stay as they are; none may be infinite or NaN. */
export interface HalvesReading {
  readonly kind: "halves";
  readonly stored: "F16" | "BF16";
  /** Stored as [J, N]. */
  readonly transposed: boolean;
  readonly rows: Span;
  readonly columns: Span;
}

/** Factors, stored in any float or as powers of two (F8_E8M0), to float32; each row is repeated `repeat` times. */
export interface ScalesReading {
  readonly kind: "scales";
  readonly repeat: number;
  /** Of the repeated rows. */
  readonly rows: Span;
  readonly columns: Span;
}

/** Unsigned integers of 4 or 8 bits in 32-bit words (I32) to `GroupedWeight.data`, or to one byte each. */
export interface CodesReading {
  readonly kind: "codes";
  readonly bits: 4 | 8;
  readonly rows: Span;
  readonly columns: Span;
  /** The direction in which the codes of a word are neighbours: of one row, or of one column. */
  readonly along: "row" | "column";
  /** Words are stored column by column: as [J, N], or what is left of it when J or N counts words. */
  readonly transposed: boolean;
  /** The code of a word that its i-th lowest bits hold. Default: the i-th. */
  readonly order?: readonly number[];
  /** Added to each code, modulo 2^bits. Default 0. */
  readonly add?: number;
  /** Column j of the result is column permutation[j]; all columns are wanted. */
  readonly permutation?: Int32Array;
  /** Two codes of 4 bits a byte, the first in the low half; else each has a byte. */
  readonly packed: boolean;
}

/** Blocks of a GGUF file, each a float16 and its codes, to `GroupedWeight.data`, or to the scales alone. */
export interface BlocksReading {
  readonly kind: "blocks";
  readonly stored: "Q4_0" | "Q8_0";
  readonly part: "codes" | "scales";
  readonly rows: Span;
  /** Of the matrix: whole blocks. */
  readonly columns: Span;
}

/** Blocks of 256 elements of a GGUF file to a part of a `SuperblockWeight` whose codes have `bits`, its groups `groupSize` columns. */
export interface SuperblocksReading {
  readonly kind: "superblocks";
  readonly stored: "Q4_K" | "Q5_K" | "Q6_K";
  readonly part: "codes" | "steps" | "units";
  readonly bits: 4 | 8;
  readonly groupSize: 16 | 32;
  readonly minima: boolean;
  readonly rows: Span;
  /** Of the matrix: whole blocks. */
  readonly columns: Span;
}

/** Floats, quantised to float8 in blocks of blockRows × blockColumns, counted from the first wanted row and column. */
export interface Float8Reading {
  readonly kind: "float8";
  /** The codes, or the factors that they are multiplied by. */
  readonly part: "codes" | "scales";
  readonly blockRows: number;
  readonly blockColumns: number;
  readonly rows: Span;
  readonly columns: Span;
}
