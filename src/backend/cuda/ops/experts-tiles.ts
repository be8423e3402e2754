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
import { KernelVariants } from "./kernel-variants.ts";

const TILE_THREADS = 256;
/** CTAs of a multiprocessor that registers are to leave room for; of the largest tiles one, where codes or blocks take more. */
const CTAS = 2;
/** Weight rows of a tile, and columns of a chunk. */
const ROWS = 128;
const DEPTH = 64;
/** Bytes of shared memory that every GPU has for a block. */
const SHARED_BYTES = 96 * 1024;
const MAX_STAGES = 4;

/** Pairs of a tile: the fewest that hold what an expert has on average. */
export const TILE_PAIRS = [16, 64, 128] as const;
export type TilePairs = (typeof TILE_PAIRS)[number];

const EXPERTS_TILES = {
  file: "experts_tiles.cu",
  constants: { TILE_THREADS, ROWS, DEPTH, ...ACTIVATION_CONSTANTS },
  entry: "experts_tiles",
  pointers: PRODUCT_POINTERS,
  scalars: [...PRODUCT_SCALARS, "in_features"],
} as const;

/** Products of items of many pairs, `experts_tiles.cu`. */
export class ExpertsTiles {
  readonly #kernels: KernelVariants<typeof EXPERTS_TILES>;

  constructor(library: KernelLibrary, dtype: FloatDType, options: KernelOptions) {
    this.#kernels = new KernelVariants(library, EXPERTS_TILES, dtype, options);
  }

  /** @param isOther products of which another kernel takes */
  units(
    { gateUp, down }: ExpertsForms,
    isOther: (form: ExpertsForm, pairs: TilePairs) => boolean = () => false,
  ): KernelUnit[] {
    return TILE_PAIRS.flatMap((pairs) => [
      ...(isOther(gateUp, pairs) ? [] : [this.#kernels.unit(macros(gateUp, pairs, true))]),
      ...(isOther(down, pairs) ? [] : [this.#kernels.unit(macros(down, pairs, false))]),
    ]);
  }

  /** The size of items for so many pairs an expert. */
  static pairsFor(average: number): TilePairs {
    return TILE_PAIRS.find((pairs) => average <= 0.75 * pairs) ?? 128;
  }

  launch(stream: number, pairs: TilePairs, product: ExpertsProduct): void {
    const { weight, outputs, mostItems, activation } = product;
    const isUp = activation !== undefined;
    const form = formOfExperts(weight);
    const key = (pairs * FORM_KEYS + formKey(form)) * 2 + Number(isUp);
    const kernel = this.#kernels.get(key, macros(form, pairs, isUp));
    const tiles = Math.ceil(outputs / (isUp ? ROWS / 2 : ROWS));
    const args = { ...productArguments(product), in_features: weight.shape[1] };
    kernel.launch(
      stream,
      tiles,
      mostItems,
      1,
      TILE_THREADS,
      stagesOf(form.format, pairs) * stageBytes(form.format, pairs),
      args,
    );
  }
}

function stageBytes(format: ExpertsForm["format"], pairs: number): number {
  return pairs * DEPTH * 2 + (ROWS * DEPTH * bitsOf(format)) / 8;
}

function stagesOf(format: ExpertsForm["format"], pairs: number): number {
  return Math.min(MAX_STAGES, Math.floor(SHARED_BYTES / stageBytes(format, pairs)));
}

function macros(form: ExpertsForm, pairs: TilePairs, isUp: boolean): Macros {
  const takesMore = bitsOf(form.format) === 4 || form.format === "int8" || form.blockColumns > 0;
  return {
    ...{ UP: Number(isUp), PAIRS: pairs, STAGES: stagesOf(form.format, pairs) },
    MIN_CTAS: takesMore && pairs === 128 ? 1 : CTAS,
    ...formMacros(form, 0),
  };
}
