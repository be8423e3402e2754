import type { Pointer } from "bun:ffi";
import { openLibc } from "./libc.ts";

/** MADV_HUGEPAGE of Linux. */
const HUGE_PAGES = 14;

/**
 * Asks the system for pages of megabytes where memory is about to be used. Reading weights then needs one of the processor's few
 * translations of addresses where it needed hundreds, which virtual machines pay for twice. Only Linux is asked, and it may decline.
 */
export function preferHugePages(address: number, byteLength: number): void {
  if (process.platform !== "linux") return;
  const libc = openLibc({ madvise: { args: ["ptr", "u64", "i32"], returns: "i32" } });
  libc?.madvise(address as Pointer, byteLength, HUGE_PAGES);
}
