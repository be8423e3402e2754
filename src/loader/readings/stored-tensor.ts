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
  readonly within?: { readonly rowBytes: number; readonly start: number } | undefined;
}

/** A tensor of rank 2, whose elements have these bytes, as a matrix of bytes. */
export function byteMatrix({ path, fd, begin, shape }: StoredTensor, elementBytes: number): ByteMatrix {
  return { path, fd, begin, rowBytes: shape[1]! * elementBytes };
}

export function tensorError({ path, name }: StoredTensor, rule: string): ModelDataError {
  return new ModelDataError(path, `tensor "${name}" ${rule}`);
}

/** The place of a row in the file, where pairs of one row of a group's first half and one of its second follow each other. */
export function placeOf(row: number, groupRows: number): number {
  const inGroup = row % groupRows;
  const half = groupRows / 2;
  return row - inGroup + 2 * (inGroup % half) + (inGroup < half ? 0 : 1);
}
