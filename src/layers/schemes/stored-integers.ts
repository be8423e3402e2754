import type { StoredShape } from "../../base/tensor-directory.ts";
import type { MatrixTensors, StoredIntegers, StoredName } from "./stored-matrix.ts";

type Stored = StoredShape & StoredName;

/** The column of eight that bits 4i to 4i + 3 of AWQ's words hold. */
const AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7];
const SUPPORTED_BITS = [4, 8];

/** Columns of a group are a multiple of this. */
export const GROUP_UNIT = 16;

/** Tensors without which a matrix would stand for other numbers, and whose absence would not be seen otherwise. */
export interface NeededTensors {
  readonly needsZeros?: boolean | undefined;
  readonly needsOrder?: boolean | undefined;
}

/** GPTQ's spelling of zero points: v1 stores one less, v2 what they are. */
export type GptqZeros = "v1" | "v2";

/**
 * `qweight`, `qzeros` and `scales` of AWQ [K, N/8], each word eight neighbours of a row, or GPTQ [K·bits/32, N], each word neighbours of
 * a column of what is stored. The shape tells which.
 */
export function storedGroups(
  tensors: MatrixTensors,
  gptqZeros: GptqZeros,
  needed: NeededTensors,
): StoredIntegers {
  const weight = tensors.find("qweight")!;
  return weight.shape[0] === tensors.matrix.columns
    ? storedAwq(tensors, weight, needed)
    : storedGptq(tensors, weight, gptqZeros, needed);
}

function storedAwq(tensors: MatrixTensors, weight: Stored, { needsZeros }: NeededTensors): StoredIntegers {
  const { rows, columns } = tensors.matrix;
  if (rows % 8 !== 0)
    throw tensors.unsupported(weight, `is of ${rows} output channels, which 8 does not divide`);
  tensors.checkShape(weight, columns, rows / 8);
  const scales = tensors.require("scales", weight);
  const groups = groupsOf(tensors, scales, scales.shape[0]);
  tensors.checkShape(scales, groups, rows);
  const zeros = needsZeros ? tensors.require("qzeros", weight) : tensors.find("qzeros");
  if (zeros !== undefined) tensors.checkShape(zeros, groups, rows / 8);
  const layout = { kind: "codes", bits: 4, along: "column", transposed: true, order: AWQ_ORDER } as const;
  return {
    ...{ form: "integers", bits: 4, groupSize: columns / groups, symmetric: zeros === undefined },
    scaleDtype: scaleDtype(tensors, scales),
    codes: (rowSpan, columnSpan) => ({
      ...nameOf(weight),
      reading: { ...layout, rows: rowSpan, columns: columnSpan, packed: true },
    }),
    scales: groupScales(tensors, scales, { transposed: true }),
    ...(zeros !== undefined && {
      zeros: (rowSpan, groupSpan) => ({
        ...nameOf(zeros),
        reading: { ...layout, rows: rowSpan, columns: groupSpan, packed: false },
      }),
    }),
  };
}

function storedGptq(
  tensors: MatrixTensors,
  weight: Stored,
  gptqZeros: GptqZeros,
  { needsOrder }: NeededTensors,
): StoredIntegers {
  const { rows, columns } = tensors.matrix;
  const bits = bitsOf(tensors, weight, weight.shape[0]);
  const perWord = 32 / bits;
  if (rows % perWord !== 0)
    throw tensors.unsupported(weight, `is of ${rows} output channels, which ${perWord} does not divide`);
  tensors.checkShape(weight, columns / perWord, rows);
  const scales = tensors.require("scales", weight);
  const groups = groupsOf(tensors, scales, scales.shape[0]);
  tensors.checkShape(scales, groups, rows);
  const zeros = tensors.require("qzeros", weight);
  tensors.checkShape(zeros, groups, rows / perWord);
  const order = needsOrder && groups > 1 ? tensors.require("g_idx", weight) : tensors.find("g_idx");
  const permutation = permutationOf(tensors, order, columns / groups);
  const isV1 = gptqZeros === "v1";
  const middle = 2 ** (bits - 1) - (isV1 ? 1 : 0);
  const middles = (middle * (bits === 4 ? 0x1111_1111 : 0x0101_0101)) | 0;
  return {
    ...{ form: "integers", bits, groupSize: columns / groups, permutation },
    scaleDtype: scaleDtype(tensors, scales),
    symmetric: tensors.words(zeros).every((word) => word === middles),
    codes: (rowSpan, columnSpan) => ({
      ...nameOf(weight),
      reading: {
        ...{ kind: "codes", bits, along: "row", transposed: true, packed: true },
        ...{ rows: rowSpan, columns: columnSpan, ...(permutation && { permutation: permutation.values }) },
      },
    }),
    scales: groupScales(tensors, scales, { transposed: true }),
    zeros: (rowSpan, groupSpan) => ({
      ...nameOf(zeros),
      reading: {
        ...{ kind: "codes", bits, along: "column", transposed: true, packed: false },
        ...{ rows: rowSpan, columns: groupSpan, add: isV1 ? 1 : 0 },
      },
    }),
  };
}

/** compressed-tensors' `weight_packed` [N, K·bits/32] with `weight_scale` and, unless it is symmetric, `weight_zero_point`. */
export function storedPacked(
  tensors: MatrixTensors,
  { needsZeros, needsOrder }: NeededTensors,
): StoredIntegers {
  const { rows, columns } = tensors.matrix;
  const weight = tensors.find("weight_packed")!;
  const bits = bitsOf(tensors, weight, weight.shape[1]);
  const perWord = 32 / bits;
  tensors.checkShape(weight, rows, columns / perWord);
  const shape = tensors.find("weight_shape");
  if (shape !== undefined) checkStatedShape(tensors, shape);
  const scales = tensors.require("weight_scale", weight);
  const groups = groupsOf(tensors, scales, scales.shape[1]);
  tensors.checkShape(scales, rows, groups);
  const zeros = needsZeros ? tensors.require("weight_zero_point", weight) : tensors.find("weight_zero_point");
  if (zeros !== undefined) tensors.checkShape(zeros, Math.ceil(rows / perWord), groups);
  const order =
    needsOrder && groups > 1 ? tensors.require("weight_g_idx", weight) : tensors.find("weight_g_idx");
  const permutation = permutationOf(tensors, order, columns / groups);
  return {
    ...{ form: "integers", bits, groupSize: columns / groups, permutation, symmetric: zeros === undefined },
    scaleDtype: scaleDtype(tensors, scales),
    codes: (rowSpan, columnSpan) => ({
      ...nameOf(weight),
      reading:
        permutation === undefined
          ? {
              ...{ kind: "bytes", stored: "I32", rows: rowSpan },
              columns: { start: columnSpan.start / perWord, end: columnSpan.end / perWord },
            }
          : {
              ...{ kind: "codes", bits, along: "row", transposed: false, packed: true },
              ...{ rows: rowSpan, columns: columnSpan, permutation: permutation.values },
            },
    }),
    scales: groupScales(tensors, scales, { transposed: false }),
    ...(zeros !== undefined && {
      zeros: (rowSpan, groupSpan) => ({
        ...nameOf(zeros),
        reading: {
          ...{ kind: "codes", bits, along: "column", transposed: false, packed: false },
          ...{ rows: rowSpan, columns: groupSpan },
        },
      }),
    }),
  };
}

function nameOf({ name, shape }: Stored): StoredName {
  return { name, shape };
}

/** @param words that hold the codes of all K columns */
function bitsOf(tensors: MatrixTensors, weight: Stored, words = 0): 4 | 8 {
  const bits = (words * 32) / tensors.matrix.columns;
  if (bits === 4 || bits === 8) return bits;
  const { rows, columns } = tensors.matrix;
  const shape = `is [${weight.shape.join(", ")}]`;
  if (Number.isInteger(bits) && bits > 0 && bits < 8)
    throw tensors.unsupported(
      weight,
      `has ${bits} bits a weight; ${SUPPORTED_BITS.join(" and ")} are supported`,
    );
  throw tensors.invalid(
    weight,
    `${shape}, which are no codes of 4 or 8 bits of a matrix [${rows}, ${columns}]`,
  );
}

/** Groups of a row. */
function groupsOf(tensors: MatrixTensors, scales: Stored, groups = 0): number {
  const { columns } = tensors.matrix;
  const size = columns / groups;
  if (scales.shape.length !== 2 || !Number.isInteger(size))
    throw tensors.invalid(
      scales,
      `is [${scales.shape.join(", ")}], which are no groups of ${columns} columns`,
    );
  if (size % GROUP_UNIT !== 0)
    throw tensors.unsupported(scales, `is of groups of ${size}; supported are multiples of ${GROUP_UNIT}`);
  return groups;
}

/** The dtype of 16-bit scales. */
export function scaleDtype(tensors: MatrixTensors, scales: Stored): "float16" | "bfloat16" {
  if (scales.dtype === "F16") return "float16";
  if (scales.dtype === "BF16") return "bfloat16";
  throw tensors.unsupported(scales, `is ${scales.dtype}; scales of integers are F16 or BF16`);
}

/** Scales of groups [N, G], or stored as [G, N]. */
export function groupScales(
  tensors: MatrixTensors,
  scales: Stored,
  { transposed }: { readonly transposed: boolean },
): StoredIntegers["scales"] {
  const stored = scaleDtype(tensors, scales) === "float16" ? "F16" : "BF16";
  return (rows, columns) => ({
    ...nameOf(scales),
    reading: { kind: "halves", stored, transposed, rows, columns },
  });
}

/**
 * The stable order of columns by their groups, which `g_idx` [K] names; undefined where groups are neighbours as they are, or
 * all −1, unset.
 * @throws ModelDataError unless each group has as many columns
 */
function permutationOf(
  tensors: MatrixTensors,
  index: Stored | undefined,
  groupSize: number,
): StoredIntegers["permutation"] {
  if (index === undefined) return undefined;
  const { columns } = tensors.matrix;
  tensors.checkShape(index, columns);
  if (index.dtype !== "I32") throw tensors.invalid(index, `is ${index.dtype}, expected I32`);
  const groups = tensors.words(index);
  if (groups.every((group, i) => group === Math.floor(i / groupSize))) return undefined;
  if (groups.every((group) => group === -1)) return undefined;
  const values = new Int32Array(columns);
  const counts = new Int32Array(columns / groupSize);
  for (const [column, group] of groups.entries()) {
    const count = counts[group];
    if (count === undefined || count === groupSize)
      throw tensors.invalid(index, `does not give each of ${counts.length} groups ${groupSize} columns`);
    values[group * groupSize + count] = column;
    counts[group]!++;
  }
  return { values, source: nameOf(index) };
}

/** @throws ModelDataError when `weight_shape`, integers [2], is not the matrix's */
function checkStatedShape(tensors: MatrixTensors, shape: Stored): void {
  tensors.checkShape(shape, 2);
  const { rows, columns } = tensors.matrix;
  const words = tensors.words(shape);
  const stated = shape.dtype === "I64" ? [rows, 0, columns, 0] : [rows, columns];
  if (words.join() !== stated.join())
    throw tensors.invalid(
      shape,
      `says [${words[0]}, ${words.at(words.length / 2)}], expected [${rows}, ${columns}]`,
    );
}
