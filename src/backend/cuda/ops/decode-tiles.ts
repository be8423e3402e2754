import type { AttentionForm } from "../../attention-spec.ts";
import { STATIC_SHARED_BYTES } from "../kernel.ts";
import type { Macros } from "../kernel-source.ts";
import { scoreDefines } from "./attention-form.ts";
import { type HeadShape, headDefines, MAX_GROUP_SIZE, MAX_HEAD_DIM, MAX_NARROW_DIM } from "./head-shape.ts";
import { VECTOR_BYTES } from "./kernel-variants.ts";

/** Tokens of a decode warp's step. */
export const DECODE_TILE = 16;
/** The same of tokens in eight bits: as many bytes, where there are registers for the scores besides. */
const FLOAT8_TILE = 32;
const MAX_FLOAT8_TILE_DIM = 128;
/** Warps that take a tile together where a head is too wide for the registers of one. */
const WIDE_SLICES = 4;
/** Tokens that are not cut: merging the results of splits takes longer than reading so many. */
const UNCUT_TOKENS = 256;

/** Constants of decode_splits.cuh. */
export const DECODE_CONSTANTS = { MAX_HEAD_DIM, MAX_GROUP_SIZE, UNCUT_TOKENS } as const;

/** Warps that take a tile together, a slice of the dimensions each. */
export function slicesOf({ headDim }: HeadShape): number {
  return headDim <= MAX_NARROW_DIM ? 1 : WIDE_SLICES;
}

/** Warps of a decode block: as many as merge their results in static shared memory, beside the group's projections. */
export function decodeWarps(shape: HeadShape): number {
  if (slicesOf(shape) > 1) return slicesOf(shape);
  const { headDim, group, float8 } = shape;
  const projected = (group + 2) * (headDim * 2 + VECTOR_BYTES) + (float8 ? 2 * headDim : 0);
  return 4 * group * (headDim + 2) * 4 + projected + VECTOR_BYTES < STATIC_SHARED_BYTES ? 4 : 2;
}

/** Macros of decode_splits.cuh. */
export function decodeDefines(shape: HeadShape, form: AttentionForm): Macros {
  const slices = slicesOf(shape);
  return {
    ...{ ...headDefines(shape), ...scoreDefines(form) },
    DECODE_WARPS: decodeWarps(shape),
    DECODE_SLICES: slices,
    DECODE_TILE: shape.float8 && shape.headDim / slices <= MAX_FLOAT8_TILE_DIM ? FLOAT8_TILE : DECODE_TILE,
  };
}
