import { projectedHeads } from "../../attention-spec.ts";
import type { LayerAttention, ModelShape } from "../../backend.ts";
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

/**
 * The products of a model of these sizes: those of attention in each form, of the feed-forward block and the LM head; and, where
 * its matrices are known, those by others, which begin with no norm unless they are a wider feed-forward block's.
 */
export function productsOf(shape: ModelShape): readonly ModelProduct[] {
  const { vocabSize, hiddenSize, intermediateSize, attentionForms } = shape;
  const known = [
    ...attentionForms.flatMap((form) => attentionProducts(shape, form)),
    ...feedForwardProducts(shape, intermediateSize),
    { ...PLAIN, inFeatures: hiddenSize, outFeatures: vocabSize, norm: true, floatOut: true },
  ];
  const products = [...known, ...otherProducts(shape, known)];
  return [...new Map(products.map((product) => [JSON.stringify(product), product])).values()];
}

const PLAIN = { norm: false, gated: false, activation: -1, floatOut: false } as const;

function attentionProducts(shape: ModelShape, { kvHeads, readsOnly }: LayerAttention): ModelProduct[] {
  const { numHeads, hiddenSize } = shape;
  const { numKvHeads, headDim } = kvHeads ?? shape;
  const outFeatures = projectedHeads({ numHeads, numKvHeads, readsOnly }) * headDim;
  return [
    { ...PLAIN, inFeatures: hiddenSize, outFeatures, norm: true },
    { ...PLAIN, inFeatures: numHeads * headDim, outFeatures: hiddenSize },
  ];
}

function feedForwardProducts(
  { hiddenSize, activation = "silu" }: ModelShape,
  intermediateSize: number,
): ModelProduct[] {
  const gate = { gated: true, activation: ACTIVATION_CODES[activation] };
  return [
    { ...PLAIN, ...gate, inFeatures: hiddenSize, outFeatures: 2 * intermediateSize, norm: true },
    { ...PLAIN, inFeatures: intermediateSize, outFeatures: hiddenSize },
  ];
}

/**
 * Of matrices in floats that the sizes do not foresee; one of the same shape as a foreseen one is compiled for when it is used. Those
 * of experts and of layers with a state have kernels of their own.
 */
function otherProducts(shape: ModelShape, known: readonly ModelProduct[]): ModelProduct[] {
  const { matrices = [], experts, deltaNet } = shape;
  if (experts !== undefined || deltaNet !== undefined) return [];
  const others = matrices.filter(
    (weight) => weight.format === "dense" && !known.some((product) => multiplies(weight, product)),
  );
  return others.flatMap(({ shape: [outFeatures, inFeatures] }) => {
    const [before, after] = feedForwardProducts(shape, outFeatures / 2) as [ModelProduct, ModelProduct];
    const isGated = inFeatures === before.inFeatures && matrices.some((weight) => multiplies(weight, after));
    return isGated ? [before, after] : [{ ...PLAIN, outFeatures, inFeatures }];
  });
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
