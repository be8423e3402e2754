import type { ModelShape } from "../../backend.ts";
import type { Weight } from "../../weight.ts";
import { ACTIVATION_CODES } from "./activation.ts";
import { isQuantised, type QuantisedWeight } from "./quantised-form.ts";

/** A product that a model's forward pass has, with what is fused with it. */
export interface ModelProduct {
  readonly outFeatures: number;
  readonly inFeatures: number;
  readonly norm: boolean;
  readonly gated: boolean;
  /** Its code, of a gated product; else −1. */
  readonly activation: number;
  readonly floatOut: boolean;
}

/** The four products of a layer, and that of the LM head, of a model of these sizes. */
export function productsOf(shape: ModelShape): readonly ModelProduct[] {
  const { vocabSize, hiddenSize, intermediateSize, numHeads, numKvHeads, headDim } = shape;
  const { activation = "silu" } = shape;
  const alone = { gated: false, activation: -1, floatOut: false };
  const plain = { ...alone, outFeatures: hiddenSize, norm: false };
  const normed = { ...alone, inFeatures: hiddenSize, norm: true };
  return [
    { ...normed, outFeatures: (numHeads + 2 * numKvHeads) * headDim },
    { ...plain, inFeatures: numHeads * headDim },
    {
      ...normed,
      ...{ outFeatures: 2 * intermediateSize, gated: true, activation: ACTIVATION_CODES[activation] },
    },
    { ...plain, inFeatures: intermediateSize },
    { ...normed, outFeatures: vocabSize, floatOut: true },
  ];
}

/** Whether some matrix of a product is in floats, as far as the model says. */
export function isDense(product: ModelProduct, { matrices }: ModelShape): boolean {
  return matrices?.every((weight) => !multiplies(weight, product) || weight.format !== "dense") !== true;
}

/** The matrices of a product that are quantised. */
export function quantisedOf(
  product: ModelProduct,
  { matrices = [] }: ModelShape,
): readonly QuantisedWeight[] {
  return matrices.filter(
    (weight): weight is QuantisedWeight => isQuantised(weight) && multiplies(weight, product),
  );
}

function multiplies({ shape: [n, k] }: Weight, { outFeatures, inFeatures }: ModelProduct): boolean {
  return n === outFeatures && k === inFeatures;
}
