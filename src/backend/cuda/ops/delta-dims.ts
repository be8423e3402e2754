import { UnsupportedModelError } from "../../../base/errors.ts";
import type { DeltaNetShape } from "../../delta-net.ts";
import type { Macros } from "../kernel-source.ts";

/** Dimensions of a head of keys or values that the kernels of the gated delta rule take. */
const DIMS = [16, 32, 64, 128];

/** @throws UnsupportedModelError for heads that the kernels cannot take. */
export function checkDeltaNetDims({ keyDim, valueDim }: DeltaNetShape): void {
  for (const dim of [keyDim, valueDim])
    if (!DIMS.includes(dim))
      throw new UnsupportedModelError(
        "config.json",
        `linear attention on cuda does not take heads of ${dim} dimensions; supported are ${DIMS.join(", ")}`,
      );
}

/** Scalars of kernels of the rule, and of those that see a layer's states or tails. */
export const HEADS = ["key_heads", "value_heads"] as const;
export const PLACE = ["layers", "layer"] as const;
export type HeadScalars = Readonly<Record<(typeof HEADS)[number] | (typeof PLACE)[number], number>>;

/** A number of its own for the sizes that kernels are specialised by. */
export function dimsKey({ keyDim, valueDim, convWidth }: DeltaNetShape): number {
  return (convWidth * 256 + keyDim) * 256 + valueDim;
}

export function dimDefines({ keyDim, valueDim }: DeltaNetShape): Macros {
  return { KEY_DIM: keyDim, VALUE_DIM: valueDim };
}

/** Of kernels that see a convolution's inputs, too. */
export function convolvedDefines(shape: DeltaNetShape): Macros {
  return { ...dimDefines(shape), CONV_WIDTH: shape.convWidth };
}
