import { ModelDataError } from "../../base/errors.ts";
import type { ByteMatrix } from "./band.ts";

/** A tensor in an open file. */
export interface StoredTensor {
  readonly name: string;
  readonly path: string;
  readonly fd: number;
  readonly dtype: string;
  readonly shape: readonly number[];
  /** Byte offsets in the file. */
  readonly begin: number;
  readonly end: number;
  /** See `CheckpointTensor`. Only blocks are read in another order. */
  readonly pairedRows?: number | undefined;
}

/** A tensor of rank 2, whose elements have these bytes, as a matrix of bytes. */
export function byteMatrix({ path, fd, begin, shape }: StoredTensor, elementBytes: number): ByteMatrix {
  return { path, fd, begin, rowBytes: shape[1]! * elementBytes };
}

export function tensorError({ path, name }: StoredTensor, rule: string): ModelDataError {
  return new ModelDataError(path, `tensor "${name}" ${rule}`);
}
