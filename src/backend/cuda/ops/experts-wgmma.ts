import type { FloatDType } from "../../../base/dtype.ts";
import type { Weight } from "../../weight.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CONSTANTS } from "./activation.ts";
import {
  type ExpertsFormat,
  type ExpertsForms,
  type ExpertsProduct,
  FLOAT_POINTERS,
  PRODUCT_SCALARS,
  productArguments,
} from "./experts-product.ts";
import { TILE_PAIRS, type TilePairs } from "./experts-tiles.ts";
import { KernelVariants } from "./kernel-variants.ts";

const TILE_THREADS = 256;
/** Weight rows of a tile, and columns of a chunk. */
const ROWS = 128;
const DEPTH = 64;
/** Bytes of shared memory that two blocks of a multiprocessor have each. */
const SHARED_BYTES = 96 * 1024;

const EXPERTS_WGMMA = {
  file: "experts_wgmma.cu",
  constants: { TILE_THREADS, ROWS, DEPTH, ...ACTIVATION_CONSTANTS },
  entry: "experts_wgmma",
  pointers: FLOAT_POINTERS,
  scalars: [...PRODUCT_SCALARS, "in_features"],
} as const;

/** Products of items of many pairs by weights in floats on Hopper, `experts_wgmma.cu`. */
export class ExpertsWgmma {
  readonly #kernels: KernelVariants<typeof EXPERTS_WGMMA>;

  constructor(library: KernelLibrary, dtype: FloatDType, options: KernelOptions) {
    this.#kernels = new KernelVariants(library, EXPERTS_WGMMA, dtype, options);
  }

  units({ gateUp, down }: ExpertsForms): KernelUnit[] {
    return TILE_PAIRS.flatMap((pairs) => [
      ...(ExpertsWgmma.takes(gateUp, pairs) ? [this.#kernels.unit(macros(pairs, true))] : []),
      ...(ExpertsWgmma.takes(down, pairs) ? [this.#kernels.unit(macros(pairs, false))] : []),
    ]);
  }

  /** Fewer pairs are less than a product of wgmma has. */
  static takes({ format }: { readonly format: ExpertsFormat | Weight["format"] }, pairs: TilePairs): boolean {
    return format === "dense" && pairs >= 64;
  }

  launch(stream: number, pairs: TilePairs, product: ExpertsProduct): void {
    const { weight, outputs, mostItems, activation } = product;
    const isUp = activation !== undefined;
    const { scales: _, zeros: __, ...args } = productArguments(product);
    const tiles = Math.ceil(outputs / (isUp ? ROWS / 2 : ROWS));
    this.#kernels
      .get(pairs * 2 + Number(isUp), macros(pairs, isUp))
      .launch(stream, tiles, mostItems, 1, TILE_THREADS, stagesOf(pairs) * stageBytes(pairs), {
        ...{ ...args, in_features: weight.shape[1] },
      });
  }
}

function stageBytes(pairs: TilePairs): number {
  return (pairs + ROWS) * DEPTH * 2;
}

function stagesOf(pairs: TilePairs): number {
  return Math.floor(SHARED_BYTES / stageBytes(pairs));
}

function macros(pairs: TilePairs, isUp: boolean): Macros {
  return { UP: Number(isUp), PAIRS: pairs, STAGES: stagesOf(pairs) };
}
