import { dtypeSize, type FloatDType, widen } from "../base/dtype.ts";
import { BLOCK_TYPES, type BlockType, blockOf, dequantize, isBlockType } from "../gguf/dequantize.ts";

/** A file's way to store elements that become floats: as floats, or in blocks of a quantised type. */
export type StoredDType = FloatDType | BlockType;

/** Formats' names of floats. */
export const FLOATS: ReadonlyMap<string, FloatDType> = new Map<string, FloatDType>([
  ["F32", "float32"],
  ["BF16", "bfloat16"],
  ["F16", "float16"],
]);
/** Formats' names of the dtypes that can be loaded. */
export const LOADABLE: ReadonlyMap<string, StoredDType> = new Map<string, StoredDType>([
  ...FLOATS,
  ...BLOCK_TYPES.map((type) => [type, type] as const),
]);

/** The float that a format's name stands for; undefined for any other dtype. */
export function floatNamed(name: string | undefined): FloatDType | undefined {
  return FLOATS.get(name ?? "");
}

/** The smallest piece of a row that stands for elements by itself: so many of them, in so many bytes. */
export function unitOf(dtype: StoredDType): { readonly elements: number; readonly bytes: number } {
  return isBlockType(dtype) ? blockOf(dtype) : { elements: 1, bytes: dtypeSize(dtype) };
}

/** Fills `target` with the elements of `source`. */
export function decode(source: Uint8Array, dtype: StoredDType, target: Float32Array): void {
  if (isBlockType(dtype)) dequantize(source, dtype, target);
  else widen(source, dtype, target);
}
