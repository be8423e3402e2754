import type { FloatDType } from "../../../base/dtype.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CONSTANTS } from "./activation.ts";
import {
  bitsOf,
  type ExpertsForm,
  type ExpertsForms,
  type ExpertsProduct,
  FORM_KEYS,
  formKey,
  formMacros,
  formOfExperts,
  PRODUCT_POINTERS,
  PRODUCT_SCALARS,
  productArguments,
} from "./experts-product.ts";
import { KernelVariants, WARP } from "./kernel-variants.ts";

/** Pairs of an item: the columns of one mma. */
export const FEW_PAIRS = 8;
const FEW_WARPS = 8;
/** Columns that all warps take together, of weights in floats. */
const STEP_COLUMNS = FEW_WARPS * 32;
/** Steps up to which a CTA takes twice the rows, so that it still has enough to read. */
const SHORT_STEPS = 4;
/** By bits of a weight: fragments of 16 rows of a CTA, and pieces of each that a lane has loads under way for. */
const SHAPES = {
  16: { FRAGMENTS: 1, STAGES: 8 },
  short: { FRAGMENTS: 2, STAGES: 4 },
  4: { FRAGMENTS: 2, STAGES: 3 },
  8: { FRAGMENTS: 2, STAGES: 2 },
} as const;

const EXPERTS_FEW = {
  file: "experts_few.cu",
  constants: { FEW_WARPS, FEW_PAIRS, ...ACTIVATION_CONSTANTS },
  entry: "experts_few",
  pointers: PRODUCT_POINTERS,
  scalars: PRODUCT_SCALARS,
} as const;

/** Products of items of at most `FEW_PAIRS` pairs, `experts_few.cu`. */
export class ExpertsFew {
  readonly #kernels: KernelVariants<typeof EXPERTS_FEW>;

  constructor(library: KernelLibrary, dtype: FloatDType, options: KernelOptions) {
    this.#kernels = new KernelVariants(library, EXPERTS_FEW, dtype, options);
  }

  units(hidden: number, intermediate: number, forms: ExpertsForms): KernelUnit[] {
    return [
      this.#kernels.unit(macros(forms.gateUp, hidden, true)),
      this.#kernels.unit(macros(forms.down, intermediate, false)),
    ];
  }

  launch(stream: number, product: ExpertsProduct): void {
    const { weight, outputs, mostItems, activation } = product;
    const [k, isUp] = [weight.shape[1], activation !== undefined];
    const form = formOfExperts(weight);
    const rows = shapeOf(form, k).FRAGMENTS * (isUp ? 8 : 16);
    const key = (k * FORM_KEYS + formKey(form)) * 2 + Number(isUp);
    const kernel = this.#kernels.get(key, macros(form, k, isUp));
    const tiles = Math.ceil(outputs / rows);
    kernel.launch(stream, tiles, mostItems, 1, FEW_WARPS * WARP, 0, productArguments(product));
  }
}

function shapeOf({ format }: ExpertsForm, inFeatures: number) {
  return SHAPES[format === "dense" && inFeatures <= SHORT_STEPS * STEP_COLUMNS ? "short" : bitsOf(format)];
}

function macros(form: ExpertsForm, inFeatures: number, isUp: boolean): Macros {
  return {
    ...{ UP: Number(isUp), IN_FEATURES: inFeatures },
    ...formMacros(form, inFeatures),
    ...shapeOf(form, inFeatures),
  };
}
