import { DeviceError } from "../../../base/errors.ts";
import type { ExpertActivation } from "../../experts.ts";
import type { Tensor } from "../../tensor.ts";
import type { GroupedWeight, SuperblockWeight, Weight } from "../../weight.ts";
import type { Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES } from "./activation.ts";
import type { ExpertLists } from "./experts-route.ts";

/** The weights that the kernels multiply by. */
export type ExpertsWeight = Exclude<Weight, GroupedWeight | SuperblockWeight> | PlainGroups;

/** Groups whose columns are in order. */
export type PlainGroups = GroupedWeight & { readonly permutation?: undefined };

/** Columns of 16 bytes of a row, by the bits of a weight. */
const PIECE_COLUMNS = { 4: 32, 8: 16, 16: 8 } as const;

/** @throws DeviceError for weights whose columns are permuted, or whose sizes or groups are no multiples of what is loaded together */
export function expertsWeight(weight: Weight): ExpertsWeight {
  if (weight.format === "superblocks")
    throw new DeviceError("this device has no kernels for experts in superblocks");
  const multiple = PIECE_COLUMNS[bitsOf(formatOf(weight))];
  const columns = weight.shape[1];
  if (columns % multiple !== 0)
    throw new DeviceError(`experts of ${columns} dimensions; this device takes multiples of ${multiple}`);
  if (weight.format !== "grouped") return weight;
  const { permutation, groupSize, ...plain } = weight;
  if (permutation !== undefined)
    throw new DeviceError(
      `this device has no kernels for experts whose columns are permuted (GPTQ's desc_act); device "cpu" multiplies by them`,
    );
  if (groupSize % multiple !== 0)
    throw new DeviceError(
      `experts of ${weight.bits} bits in groups of ${groupSize} columns; this device takes multiples of ${multiple}`,
    );
  return { ...plain, groupSize };
}

/** The formats that kernels tell apart: integers are of 4 bits, or of 8. */
export type ExpertsFormat = "dense" | "mxfp4" | "fp8" | "int4" | "int8";
type Bits = keyof typeof PIECE_COLUMNS;

export function formatOf(weight: Exclude<Weight, SuperblockWeight>): ExpertsFormat {
  if (weight.format !== "grouped") return weight.format;
  return weight.bits === 4 ? "int4" : "int8";
}

/** Of an element. */
export function bitsOf(format: ExpertsFormat): Bits {
  return format === "dense" ? 16 : format === "fp8" || format === "int8" ? 8 : 4;
}

/** What kernels are specialised by of a weight, besides its columns. */
export interface ExpertsForm {
  readonly format: ExpertsFormat;
  /** The rows and columns that share a scale, of 8-bit floats and integers; 0 columns: whole rows. */
  readonly blockRows: number;
  readonly blockColumns: number;
  /** Integers have zero points, and scales of bfloat16. */
  readonly zeros: boolean;
  readonly bfloatScales: boolean;
}

/** Those of a layer's experts. */
export interface ExpertsForms {
  readonly gateUp: ExpertsForm;
  readonly down: ExpertsForm;
}

/** That of floats, and of all formats without blocks. */
export function plainForm(format: ExpertsFormat): ExpertsForm {
  return { format, blockRows: 1, blockColumns: 0, zeros: false, bfloatScales: false };
}

export function formOfExperts(weight: ExpertsWeight): ExpertsForm {
  const plain = plainForm(formatOf(weight));
  const within = (columns: number) => (columns < weight.shape[1] ? columns : 0);
  if (weight.format === "fp8")
    return { ...plain, blockRows: weight.blockRows, blockColumns: within(weight.blockColumns) };
  if (weight.format !== "grouped") return plain;
  const { groupSize, zeros, scales } = weight;
  const more = { zeros: zeros !== undefined, bfloatScales: scales.dtype === "bfloat16" };
  return { ...plain, ...more, blockColumns: within(groupSize) };
}

/** @param wholeRows what columns of a block are where a scale is for whole rows */
export function formMacros(form: ExpertsForm, wholeRows: number): Macros {
  const { format, blockRows, blockColumns, zeros, bfloatScales } = form;
  return {
    ...{ MXFP4: Number(format === "mxfp4"), FLOAT8: Number(format === "fp8") },
    INTEGERS: format === "int4" ? 4 : format === "int8" ? 8 : 0,
    ...{ ZEROS: Number(zeros), BFLOAT_SCALES: Number(bfloatScales) },
    ...{ BLOCK_ROWS: blockRows, BLOCK_COLUMNS: blockColumns || wholeRows },
  };
}

const FORMATS: readonly ExpertsFormat[] = ["dense", "mxfp4", "fp8", "int4", "int8"];
/** More than log₂ of the rows of a block, and more columns than one has. */
const MOST_LOG_ROWS = 16;
const MOST_COLUMNS = 2 ** 15;

/** Tells forms apart: less than `FORM_KEYS`. Rows of a block are a power of two. */
export function formKey({ format, blockRows, blockColumns, zeros, bfloatScales }: ExpertsForm): number {
  const kind = FORMATS.indexOf(format) * 4 + Number(zeros) * 2 + Number(bfloatScales);
  return (kind * MOST_LOG_ROWS + Math.log2(blockRows)) * MOST_COLUMNS + blockColumns;
}
export const FORM_KEYS = FORMATS.length * 4 * MOST_LOG_ROWS * MOST_COLUMNS;

/** One of the two products of a mixture of experts; see experts_few.cu. */
export interface ExpertsProduct {
  readonly out: Tensor;
  readonly x: Tensor;
  /** [E · N, K]. */
  readonly weight: ExpertsWeight;
  readonly bias: Tensor | undefined;
  readonly lists: ExpertLists;
  /** Items that there may be. */
  readonly mostItems: number;
  readonly perToken: number;
  /** Of `out`. */
  readonly outputs: number;
  /** Present for gate and up. */
  readonly activation: ExpertActivation | undefined;
}

/** The parameters that all kernels of products have, and what those have besides whose weights may be codes. */
export const FLOAT_POINTERS = ["out", "x", "matrices", "biases", "sorted", "weights", "items"] as const;
export const PRODUCT_POINTERS = [...FLOAT_POINTERS, "scales", "zeros"] as const;
export const PRODUCT_SCALARS = ["k", "outputs", "activation", "alpha", "limit"] as const;

export function productArguments({ lists, weight, bias, ...product }: ExpertsProduct) {
  const { out, x, perToken, outputs, activation } = product;
  return {
    ...{ ...lists, out, x, ...matrixArguments(weight, bias), k: perToken, outputs },
    ...activationArguments(activation),
  };
}

/** The arguments of a weight, with the biases of its rows. */
export function matrixArguments(weight: ExpertsWeight, bias: Tensor | undefined) {
  const scales = weight.format === "dense" ? null : weight.scales;
  const zeros = weight.format === "grouped" ? (weight.zeros ?? null) : null;
  return { matrices: weight.data, scales, zeros, biases: bias ?? null };
}

/** The arguments of an activation; any will do where there is none. */
export function activationArguments(activation: ExpertActivation | undefined) {
  if (activation?.kind === "limited_swiglu")
    return { activation: ACTIVATION_CODES.silu, alpha: activation.alpha, limit: activation.limit };
  return { activation: ACTIVATION_CODES[activation?.kind ?? "silu"], alpha: 0, limit: 0 };
}
