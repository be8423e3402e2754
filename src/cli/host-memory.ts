import { totalmem } from "node:os";

/** Bytes of memory that this process may have: the machine's or, where that is less, its container's. */
export function hostMemory(): number {
  const limit = process.constrainedMemory();
  return limit > 0 ? Math.min(limit, totalmem()) : totalmem();
}
