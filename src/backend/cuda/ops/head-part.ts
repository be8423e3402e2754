import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { InvariantError } from "../../../base/errors.ts";
import type { AttentionSpec } from "../../attention-spec.ts";
import type { LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { Macros } from "../kernel-source.ts";
import { VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/**
 * A warp's part of heads of the projections (`head_part.cuh`): `lanes` neighbouring lanes share one, each with `pairs` pairs
 * of dimensions at a time.
 */
export interface HeadPart {
  readonly pairs: number;
  readonly lanes: number;
}

/** As many pairs as a vector has elements, where both parts of a head divide by them; lanes for all of a head, up to a warp. */
export function headPart(dtype: FloatDType, headDim: number, rotaryDim: number): HeadPart {
  let pairs = VECTOR_BYTES / dtypeSize(dtype);
  while ((rotaryDim / 2) % pairs !== 0 || ((headDim - rotaryDim) / 2) % pairs !== 0) pairs /= 2;
  const pieces = headDim / 2 / pairs;
  return { pairs, lanes: Math.min(WARP, 2 ** Math.ceil(Math.log2(pieces))) };
}

export function headPartDefines(rotaryDim: number, { pairs, lanes }: HeadPart): Macros {
  return { ROTARY_DIM: rotaryDim, HEAD_PAIRS: pairs, HEAD_LANES: lanes };
}

/**
 * Kernels access vectors of what a head is made of.
 * @throws InvariantError for a tensor that does not start at one.
 */
export function checkHeadAlignment(
  qkv: Tensor,
  { keys, values }: LayerCache,
  { cosSin, headNorm }: AttentionSpec,
): void {
  for (const tensor of [qkv, keys, values, cosSin, headNorm?.query, headNorm?.key]) {
    if (tensor !== undefined && tensor.address % VECTOR_BYTES !== 0)
      throw new InvariantError(`attend: ${tensor} is not ${VECTOR_BYTES}-byte aligned`);
  }
}
