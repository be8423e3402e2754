import type { DType } from "../../../base/dtype.ts";
import { UnsupportedModelError } from "../../../base/errors.ts";
import type { AttentionSpec } from "../../attention-spec.ts";
import type { Macros } from "../kernel-source.ts";

export const MAX_HEAD_DIM = 512;
export const MAX_GROUP_SIZE = 16;
/** The most dimensions of a head of which a warp has registers for a tile's rows, or a warpgroup. */
export const MAX_NARROW_DIM = 256;

export type Heads = Pick<AttentionSpec, "numHeads" | "numKvHeads" | "headDim">;

/** The shape of heads that attention kernels are specialised by. */
export interface HeadShape {
  readonly headDim: number;
  /** Query heads of a key/value head. */
  readonly group: number;
  readonly blockSize: number;
  /** Keys and values are cached as float8_e4m3, not in the dtype of activations. */
  readonly float8: boolean;
}

/** @throws UnsupportedModelError for heads that the kernels cannot take. */
export function headShape(
  { numHeads, numKvHeads, headDim }: Heads,
  blockSize: number,
  kvDtype: DType | undefined,
): HeadShape {
  if (headDim % 32 !== 0 || (headDim > MAX_NARROW_DIM && headDim !== MAX_HEAD_DIM))
    throw unsupported(
      `head dimension ${headDim}; supported are multiples of 32 up to ${MAX_NARROW_DIM}, and ${MAX_HEAD_DIM}`,
    );
  const group = numHeads / numKvHeads;
  if (group > MAX_GROUP_SIZE)
    throw unsupported(
      `${numHeads} query heads over ${numKvHeads}; supported are up to ${MAX_GROUP_SIZE} for each`,
    );
  return { headDim, group, blockSize, float8: kvDtype === "float8_e4m3" };
}

/** A number of its own for each shape. */
export function headKey({ headDim, group, blockSize, float8 }: HeadShape): number {
  return ((blockSize * 2 + Number(float8)) * (MAX_GROUP_SIZE + 1) + group) * (MAX_HEAD_DIM + 1) + headDim;
}

export function headDefines({ headDim, group, blockSize, float8 }: HeadShape): Macros {
  return { HEAD_DIM: headDim, GROUP_SIZE: group, BLOCK_SIZE: blockSize, ...cacheDefines(float8) };
}

/** The macro that selects the type of cached keys and values, `cache_t`: without it that of activations. */
export function cacheDefines(float8: boolean): Macros {
  return float8 ? { CACHE_FLOAT8: 1 } : {};
}

function unsupported(what: string): UnsupportedModelError {
  return new UnsupportedModelError("config.json", `attention on cuda does not take a ${what}`);
}
