/** The matrix at hand; see layout.ts for its arguments. */
import * as layout from "./layout";
import { argument } from "./vectors";

/** Address of a row. */
export function rowAt(row: i32): usize {
  return argument<usize>(layout.DATA) + <usize>row * argument<usize>(layout.ROW_BYTES);
}
