import type { Tensor } from "../../tensor.ts";
import {
  type Fp8Weight,
  type GroupedWeight,
  SUPERBLOCK,
  type SuperblockWeight,
  type Weight,
} from "../../weight.ts";
import type { Macros } from "../kernel-source.ts";

/** Weights that products make elements of. */
export type QuantisedWeight = Fp8Weight | GroupedWeight | SuperblockWeight;

export function isQuantised(weight: Weight): weight is QuantisedWeight {
  return ["fp8", "grouped", "superblocks"].includes(weight.format);
}

/** Rows of a strip, and bytes of a row in a block of columns; see quantised.cuh. */
export const STRIP_ROWS = 8;
export const BLOCK_BYTES = 64;
/** The same columns of a strip's rows. */
export const STRIP_BLOCK_BYTES = STRIP_ROWS * BLOCK_BYTES;
/** Columns of a block that has a scale, as 8-bit floats have them. */
const SCALE_BLOCK_COLUMNS = 128;

/** What quantised.cuh is told of the order of codes. */
export const ORDER_CONSTANTS = { STRIP: STRIP_ROWS, BLOCK_BYTES } as const;
/** What scales are: a float32 for each row or for each block, 16 bits for each row's group, or steps of superblocks. */
export const ScaleKind = {
  rowFloats: 0,
  blockFloats: 1,
  groupHalves: 2,
  groupBfloats: 3,
  steps: 4,
  stepsAndMinima: 5,
} as const;
type ScaleKind = (typeof ScaleKind)[keyof typeof ScaleKind];

/** What kernels know of a quantised weight besides its extents. */
export interface QuantisedForm {
  readonly bits: 4 | 8;
  readonly float8: boolean;
  readonly scales: ScaleKind;
  /** Scales, or steps. */
  readonly factors: Tensor;
  readonly zeros: Tensor | undefined;
  /** Of steps. */
  readonly units: Tensor | undefined;
  /** Columns that share a scale, and how many there are of them in a row. */
  readonly groupSize: number;
  readonly groups: number;
  /** Rows that share one, of 8-bit floats; else 1. */
  readonly blockRows: number;
  /** Codes lie in the order of quantised.cuh; else, where that cannot be, as `Weight` says. */
  readonly ordered: boolean;
}

/** The form of a weight, in the order that its extents allow. */
export function formOf(weight: QuantisedWeight): QuantisedForm {
  const [n, k] = weight.shape;
  if (weight.format === "fp8") {
    const { blockRows, blockColumns } = weight;
    const perRow = blockRows === 1 && blockColumns >= k;
    const blocks = blockRows % STRIP_ROWS === 0 && blockColumns === SCALE_BLOCK_COLUMNS;
    return {
      ...{ bits: 8, float8: true, factors: weight.scales, zeros: undefined, units: undefined, blockRows },
      scales: perRow ? ScaleKind.rowFloats : ScaleKind.blockFloats,
      groupSize: blockColumns,
      groups: Math.ceil(k / blockColumns),
      ordered: isWhole(n, k, 8) && (perRow || blocks),
    };
  }
  const { bits, groupSize } = weight;
  const groups = k / groupSize;
  if (weight.format === "superblocks") {
    const { minima, steps, units } = weight;
    return {
      ...{ bits, float8: false, factors: steps, zeros: undefined, units, groupSize, groups, blockRows: 1 },
      scales: minima ? ScaleKind.stepsAndMinima : ScaleKind.steps,
      ordered: isWhole(n, k, bits),
    };
  }
  const { scales, zeros } = weight;
  return {
    ...{ bits, float8: false, factors: scales, zeros, units: undefined, groupSize, groups, blockRows: 1 },
    scales: scales.dtype === "float16" ? ScaleKind.groupHalves : ScaleKind.groupBfloats,
    ordered: isWhole(n, k, bits) && (groups === 1 || isPowerOfTwo(groupSize)),
  };
}

/** Bytes that `columns` columns of a strip have as scales, zero points or steps and units, each in whole vectors of `alignment`. */
export function factorBytes(
  { scales, zeros, groupSize, groups }: QuantisedForm,
  columns: number,
  alignment: number,
): number {
  const count = groups === 1 ? 1 : Math.max(1, columns / groupSize);
  const aligned = (bytes: number) => Math.ceil(bytes / alignment) * alignment;
  const halves = count * STRIP_ROWS * 2;
  const superblocks = Math.max(1, columns / SUPERBLOCK) * STRIP_ROWS * 2;
  const scaleBytes = {
    [ScaleKind.rowFloats]: 0,
    [ScaleKind.blockFloats]: aligned(count * 4),
    [ScaleKind.groupHalves]: halves,
    [ScaleKind.groupBfloats]: halves,
    [ScaleKind.steps]: halves / 2 + superblocks,
    [ScaleKind.stepsAndMinima]: halves + 2 * superblocks,
  }[scales];
  return scaleBytes + (zeros === undefined ? 0 : aligned(count * STRIP_ROWS));
}

/** Columns of a block. */
export function blockColumns(bits: 4 | 8): number {
  return (BLOCK_BYTES * 8) / bits;
}

/** Whether a matrix is whole strips and blocks. */
function isWhole(n: number, k: number, bits: 4 | 8): boolean {
  return n % STRIP_ROWS === 0 && k % blockColumns(bits) === 0;
}

function isPowerOfTwo(n: number): boolean {
  return (n & (n - 1)) === 0;
}

/** Macros of quantised.cuh. */
export function formDefines({ bits, float8, scales, zeros }: QuantisedForm): Macros {
  return { BITS: bits, FLOAT8: float8 ? 1 : 0, SCALES: scales, ZEROS: zeros === undefined ? 0 : 1 };
}

/** Tells forms apart as far as `formDefines` does. */
export function formKey({ bits, float8, scales, zeros }: QuantisedForm): number {
  return (bits === 8 ? 1 : 0) + (float8 ? 2 : 0) + (zeros === undefined ? 0 : 4) + scales * 8;
}
