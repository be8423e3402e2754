import type { Tensor } from "./tensor.ts";

/**
 * A matrix [N, K] as it is stored, to multiply by: y[N] = W[N, K] · x[K]. Layers pass weights on and never look inside; ops tell the
 * forms apart by `format`.
 *
 * | format    | data                               | scales                     | an element W[n, k]                                |
 * | --------- | ---------------------------------- | -------------------------- | ------------------------------------------------- |
 * | `dense`   | floats [N, K]                      | none                       | data[n, k]                                        |
 * | `fp8`     | float8_e4m3 [N, K]                 | float32 [⌈N/r⌉, ⌈K/c⌉]     | data[n, k] · scales[n div r, k div c]             |
 * | `grouped` | uint8 [N, K·bits/8], packed        | 16-bit float [N, K/g]      | (code[n, j] − zero[n, j div g]) · scales[n, j div g] |
 * | `mxfp4`   | uint8 [N, K/2], packed             | uint8 [N, K/32]            | e2m1(code[n, k]) · 2^(scales[n, k div 32] − 127)  |
 * | `superblocks` | uint8 [N, K·bits/8], packed    | bytes, and their units     | scale[n, k div g] · code[n, k] − minimum[n, k div g] |
 *
 * Everything is row-major without padding: K is contiguous, a row of scales follows the one before. Each tensor of a weight is at
 * least 16-byte aligned: one that was loaded begins an allocation of its own. This is the canonical form, which the loader makes of
 * every checkpoint and the CPU backend reads. A backend that wants another order for `linear` makes it in
 * `Backend.prepareWeight`; experts' weights stay as they are here.
 *
 * **Fused products** (query, key and value; gate and up) are one weight: rows of all parts one after another, and with them their rows
 * of scales and zeros. Parts of one weight have one format, block, group size and permutation; a checkpoint whose parts differ is
 * refused.
 *
 * **Ranks** hold rows [n₀, n₁) of a weight split by columns, with their rows of scales and zeros, and columns [k₀, k₁) of one split by
 * rows. Columns are cut between blocks and groups only; a permuted weight cannot be cut so. Where ranks or parts begin within a
 * block's rows, the block is given in fewer rows, each with its own copy of the scale (see `Fp8Weight.blockRows`).
 */
export type Weight = DenseWeight | Fp8Weight | GroupedWeight | Mxfp4Weight | SuperblockWeight;

/** One float an element, in the dtype of the activations that are multiplied by it or one of `Backend.matrixDtypes`. */
export interface DenseWeight {
  readonly format: "dense";
  /** N outputs, K inputs. */
  readonly shape: readonly [N: number, K: number];
  readonly data: Tensor;
}

/** 8-bit floats (e4m3fn: no infinities, no NaN in a weight) and a factor for each block, or for each output channel. */
export interface Fp8Weight {
  readonly format: "fp8";
  readonly shape: readonly [N: number, K: number];
  /** float8_e4m3 [N, K]. */
  readonly data: Tensor;
  /**
   * float32 [⌈N/blockRows⌉, ⌈K/blockColumns⌉]; the last block of a row or column may be partial. A scale of a whole tensor is repeated
   * for every output channel: never requantised, exact for fused parts.
   */
  readonly scales: Tensor;
  /**
   * Rows that share a scale: 1 where each output channel has its own; for blocks 128, or a smaller power of two where fused parts or
   * ranks begin within a block's rows.
   */
  readonly blockRows: number;
  /** Columns that share a scale: K for output channels, 128 for blocks. */
  readonly blockColumns: number;
}

/**
 * Unsigned integers of 4 or 8 bits, with a scale and a zero point for each row's group of g columns. Code j of a row is
 * `byte[j]` of 8 bits; of 4 bits the low half of `byte[j div 2]` when j is even, the high half when it is odd. So eight codes are a
 * little-endian 32-bit word, the first in its lowest bits.
 */
export interface GroupedWeight {
  readonly format: "grouped";
  readonly shape: readonly [N: number, K: number];
  readonly bits: 4 | 8;
  /** g, a multiple of 16 that divides K; K itself where each output channel has one scale. */
  readonly groupSize: number;
  /** uint8 [N, K·bits/8]. */
  readonly data: Tensor;
  /** float16 or bfloat16 [N, K/g], the checkpoint's dtype whatever that of activations is. */
  readonly scales: Tensor;
  /** uint8 [N, K/g], one byte a zero point. Undefined: all are 2^(bits − 1). */
  readonly zeros?: Tensor | undefined;
  /**
   * int32 [K], a permutation: code j of every row belongs to input x[permutation[j]]. Undefined: to x[j]. (GPTQ's `desc_act`: columns
   * of a group are not neighbours in the model, so they were moved together when they were loaded.)
   */
  readonly permutation?: Tensor | undefined;
}

/**
 * Floats of 4 bits, e2m1, with a power of two, e8m0, for each 32 columns of a row: MXFP4 of the Open Compute Project. A code's three
 * low bits stand for 0, 0.5, 1, 1.5, 2, 3, 4 and 6, its highest one is the sign; they are packed as `GroupedWeight`'s of 4 bits.
 */
export interface Mxfp4Weight {
  readonly format: "mxfp4";
  readonly shape: readonly [N: number, K: number];
  /** uint8 [N, K/2]. */
  readonly data: Tensor;
  /** uint8 [N, K/32], at most `MXFP4_MOST_SCALE`. */
  readonly scales: Tensor;
}

/** Columns of an `Mxfp4Weight` that share a scale. */
export const MXFP4_GROUP = 32;
/** Stands for 2: kernels multiply by another power of two, which leaves no room for more, and no model has as large weights. */
export const MXFP4_MOST_SCALE = 128;

/**
 * Unsigned integers of 4 or 6 bits, with a scale and a minimum for each row's group of g columns, which are whole multiples of what a
 * superblock of `SUPERBLOCK` columns has: ggml's K-quants. Scales and minima are products of 16 and 8 bits, which float32 holds
 * exactly, and so is an element but for the rounding of its difference: in float32 it is ggml's to the bit.
 */
export interface SuperblockWeight {
  readonly format: "superblocks";
  /** K is a multiple of `SUPERBLOCK`. */
  readonly shape: readonly [N: number, K: number];
  /** Of a stored code. Those of 8 bits are at most `SUPERBLOCK_MOST_CODE`. */
  readonly bits: 4 | 8;
  /** 32 where codes have 4 bits. */
  readonly groupSize: 16 | 32;
  /** Groups have minima; else, of 8 bits and in groups of 16, code `SUPERBLOCK_MIDDLE` stands for 0. */
  readonly minima: boolean;
  /** uint8 [N, K·bits/8], packed as `GroupedWeight`'s. */
  readonly data: Tensor;
  /** Signed bytes, in a tensor uint8 [N, K/g, `factorsOf`]: of each group the scale, and then the minimum, as multiples of the units. */
  readonly steps: Tensor;
  /** float16 [N, K/`SUPERBLOCK`, `factorsOf`]: of each superblock the unit of scales, and then that of minima. */
  readonly units: Tensor;
}

/** What a group has: a scale, or a minimum, too. */
export function factorsOf({ minima }: Pick<SuperblockWeight, "minima">): 1 | 2 {
  return minima ? 2 : 1;
}

/** Columns of a superblock. */
export const SUPERBLOCK = 256;
export const SUPERBLOCK_MOST_CODE = 63;
export const SUPERBLOCK_MIDDLE = 32;

/** The format of a weight, for messages and metrics. */
export type WeightFormat = Weight["format"];

/** The weight that a tensor [N, K] is. */
export function denseWeight(data: Tensor): DenseWeight {
  return { format: "dense", shape: [data.dim(0), data.dim(1)], data };
}

/** The tensors that a weight consists of. */
export function tensorsOf(weight: Weight): Tensor[] {
  const { data } = weight;
  if (weight.format === "dense") return [data];
  if (weight.format === "fp8" || weight.format === "mxfp4") return [data, weight.scales];
  if (weight.format === "superblocks") return [data, weight.steps, weight.units];
  const { scales, zeros, permutation } = weight;
  return [data, scales, zeros, permutation].filter((tensor) => tensor !== undefined);
}
