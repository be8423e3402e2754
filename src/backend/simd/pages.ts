import type { Pointer } from "bun:ffi";
import { openLibc } from "./libc.ts";

/** What Linux's madvise calls them: MADV_HUGEPAGE and MADV_NOHUGEPAGE. */
const ADVICE = { huge: 14, small: 15 } as const;
/** MADV_DONTNEED. */
const NOT_NEEDED = 4;
/** Of the largest ordinary pages that processors have. */
const MOST_PAGE_BYTES = 2 ** 16;

/** Bytes of a huge page where ordinary ones have 4 KiB. */
export const HUGE_PAGE_BYTES = 2 ** 21;

/**
 * The pages that memory is in. Reading weights in pages of megabytes needs one of the processor's few translations of addresses where
 * it needed hundreds, which virtual machines pay for twice. But the system clears a page when it is first used, which takes
 * milliseconds where a virtual machine has to get it first. Only Linux is asked, and it may decline.
 */
export class Pages {
  readonly #libc =
    process.platform === "linux"
      ? openLibc({ madvise: { args: ["ptr", "u64", "i32"], returns: "i32" } })
      : undefined;

  /** The size of pages that are not in use yet, of memory that begins and ends where pages do. */
  prefer(size: keyof typeof ADVICE, address: number, byteLength: number): void {
    this.#libc?.madvise(address as Pointer, byteLength, ADVICE[size]);
  }

  /** Of the whole pages in it, however large they are. */
  preferWithin(size: keyof typeof ADVICE, address: number, byteLength: number): void {
    const start = Math.ceil(address / MOST_PAGE_BYTES) * MOST_PAGE_BYTES;
    const end = Math.floor((address + byteLength) / MOST_PAGE_BYTES) * MOST_PAGE_BYTES;
    if (end > start) this.prefer(size, start, end - start);
  }

  /** The system takes these pages back: what is read of them afterwards is zeros. */
  giveBack(address: number, byteLength: number): void {
    this.#libc?.madvise(address as Pointer, byteLength, NOT_NEEDED);
  }
}
