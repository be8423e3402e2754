import type { FloatDType } from "../../../base/dtype.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { ACTIVATION_CONSTANTS } from "./activation.ts";
import {
  type ExpertsProduct,
  type ExpertsWeight,
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
/** Fragments times steps of columns that a lane has loads under way for; of MXFP4, where x takes more, those of two fragments. */
const LOADS_AHEAD = 8;
const MXFP4_SHAPE = { FRAGMENTS: 2, STAGES: 3 };

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

  units(hidden: number, intermediate: number, format: ExpertsWeight["format"]): KernelUnit[] {
    return [
      this.#kernels.unit(macros(format, hidden, true)),
      this.#kernels.unit(macros(format, intermediate, false)),
    ];
  }

  launch(stream: number, product: ExpertsProduct): void {
    const { weight, outputs, mostItems, activation } = product;
    const [k, isUp] = [weight.shape[1], activation !== undefined];
    const { format } = weight;
    const defines = macros(format, k, isUp);
    const rows = defines.FRAGMENTS * (isUp ? 8 : 16);
    const kernel = this.#kernels.get(4 * k + 2 * Number(format === "mxfp4") + Number(isUp), defines);
    const tiles = Math.ceil(outputs / rows);
    kernel.launch(stream, tiles, mostItems, 1, FEW_WARPS * WARP, 0, productArguments(product));
  }
}

function macros(format: ExpertsWeight["format"], inFeatures: number, isUp: boolean) {
  const fragments = inFeatures <= SHORT_STEPS * STEP_COLUMNS ? 2 : 1;
  const floats = { FRAGMENTS: fragments, STAGES: LOADS_AHEAD / fragments };
  const isMxfp4 = format === "mxfp4";
  return {
    ...{ UP: Number(isUp), IN_FEATURES: inFeatures, MXFP4: Number(isMxfp4) },
    ...(isMxfp4 ? MXFP4_SHAPE : floats),
  };
}
