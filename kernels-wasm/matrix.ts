/** The matrix at hand; see layout.ts for its arguments. */
import * as layout from "./layout";
import { argument } from "./vectors";

export function isSuperblocks(form: i32): bool {
  return form === layout.NIBBLE_SUPERBLOCKS || form === layout.BYTE_SUPERBLOCKS;
}

/** Address of a row. */
export function rowAt(row: i32): usize {
  return argument<usize>(layout.DATA) + <usize>row * argument<usize>(layout.ROW_BYTES);
}
