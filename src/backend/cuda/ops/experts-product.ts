import { DeviceError } from "../../../base/errors.ts";
import type { ExpertActivation } from "../../experts.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight, Fp8Weight, Mxfp4Weight, Weight } from "../../weight.ts";
import type { Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES } from "./activation.ts";
import type { ExpertLists } from "./experts-route.ts";

/** The weights that the kernels multiply by. */
export type ExpertsWeight = DenseWeight | Mxfp4Weight | Fp8Weight;

/** @throws DeviceError for a weight of another format */
export function expertsWeight(weight: Weight): ExpertsWeight {
  if (weight.format !== "grouped") return weight;
  throw new DeviceError(
    `this device has no kernels for experts in ${weight.format}; device "cpu" multiplies by them`,
  );
}

/** What kernels are specialised by of a weight, besides its columns. */
export interface ExpertsForm {
  readonly format: ExpertsWeight["format"];
  /** Of 8-bit floats the rows and columns that share a scale; 0 columns: whole rows. */
  readonly blockRows: number;
  readonly blockColumns: number;
}

/** That of floats, and of all formats without blocks. */
export function plainForm(format: ExpertsWeight["format"]): ExpertsForm {
  return { format, blockRows: 1, blockColumns: 0 };
}

export function formOfExperts(weight: ExpertsWeight): ExpertsForm {
  if (weight.format !== "fp8") return plainForm(weight.format);
  const { format, blockRows, blockColumns, shape } = weight;
  return { format, blockRows, blockColumns: blockColumns < shape[1] ? blockColumns : 0 };
}

/** @param wholeRows what columns of a block are where a scale is for whole rows */
export function formMacros({ format, blockRows, blockColumns }: ExpertsForm, wholeRows: number): Macros {
  return {
    ...{ MXFP4: Number(format === "mxfp4"), FLOAT8: Number(format === "fp8") },
    ...{ BLOCK_ROWS: blockRows, BLOCK_COLUMNS: blockColumns || wholeRows },
  };
}

/** Tells forms apart: less than `FORM_KEYS`. Rows of a block are a power of two. */
export function formKey({ format, blockRows, blockColumns }: ExpertsForm): number {
  if (format !== "fp8") return format === "dense" ? 0 : 1;
  return 2 + 2 * Math.log2(blockRows) + (blockColumns === 0 ? 0 : 1);
}
export const FORM_KEYS = 32;

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

/** The parameters that both kernels have. */
export const PRODUCT_POINTERS = [
  "out",
  "x",
  "matrices",
  "scales",
  "biases",
  "sorted",
  "weights",
  "items",
] as const;
export const PRODUCT_SCALARS = ["k", "outputs", "activation", "alpha", "limit"] as const;

export function productArguments({ lists, weight, bias, ...product }: ExpertsProduct) {
  const { out, x, perToken, outputs, activation } = product;
  return {
    ...{ ...lists, out, x, matrices: weight.data, biases: bias ?? null, k: perToken, outputs },
    scales: weight.format === "dense" ? null : weight.scales,
    ...activationArguments(activation),
  };
}

/** The arguments of an activation; any will do where there is none. */
export function activationArguments(activation: ExpertActivation | undefined) {
  if (activation?.kind === "limited_swiglu")
    return { activation: ACTIVATION_CODES.silu, alpha: activation.alpha, limit: activation.limit };
  return { activation: ACTIVATION_CODES[activation?.kind ?? "silu"], alpha: 0, limit: 0 };
}
