import { DeviceError } from "../../../base/errors.ts";
import type { ExpertActivation } from "../../experts.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight, Mxfp4Weight, Weight } from "../../weight.ts";
import { ACTIVATION_CODES } from "./activation.ts";
import type { ExpertLists } from "./experts-route.ts";

/** The weights that the kernels multiply by. */
export type ExpertsWeight = DenseWeight | Mxfp4Weight;

/** @throws DeviceError for a weight of another format */
export function expertsWeight(weight: Weight): ExpertsWeight {
  if (weight.format === "dense" || weight.format === "mxfp4") return weight;
  throw new DeviceError(
    `this device has no kernels for experts in ${weight.format}; device "cpu" multiplies by them`,
  );
}

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
    scales: weight.format === "mxfp4" ? weight.scales : null,
    ...activationArguments(activation),
  };
}

/** The arguments of an activation; any will do where there is none. */
export function activationArguments(activation: ExpertActivation | undefined) {
  if (activation?.kind === "limited_swiglu")
    return { activation: ACTIVATION_CODES.silu, alpha: activation.alpha, limit: activation.limit };
  return { activation: ACTIVATION_CODES[activation?.kind ?? "silu"], alpha: 0, limit: 0 };
}
