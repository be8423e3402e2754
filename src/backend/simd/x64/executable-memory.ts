import { CFunction, type Pointer, toArrayBuffer } from "bun:ffi";
import { openLibc } from "../libc.ts";

const [PROT_READ, PROT_WRITE, PROT_EXEC] = [1, 2, 4];
const MAP_PRIVATE = 2;
const MAP_ANONYMOUS: Readonly<Record<string, number>> = { linux: 0x20, darwin: 0x1000 };

const SYMBOLS = {
  mmap: { args: ["ptr", "u64", "i32", "i32", "i32", "i64"], returns: "ptr" },
  mprotect: { args: ["ptr", "u64", "i32"], returns: "i32" },
  munmap: { args: ["ptr", "u64"], returns: "i32" },
} as const;

/** Machine code in memory that is written first and executed then, never both. */
export class ExecutableMemory {
  #release: (() => void) | undefined;

  private constructor(
    /** Of its first byte, for `CFunction`. */
    readonly address: number,
    release: () => void,
  ) {
    this.#release = release;
  }

  /** Undefined where the system has no such memory, or does not give it. */
  static create(code: Uint8Array): ExecutableMemory | undefined {
    const libc = openLibc(SYMBOLS);
    if (libc === undefined) return undefined;
    const { mmap, mprotect, munmap } = libc;
    const flags = MAP_PRIVATE | MAP_ANONYMOUS[process.platform]!;
    const pointer = mmap(null, code.length, PROT_READ | PROT_WRITE, flags, -1, 0);
    // MAP_FAILED, the last of all addresses, is no number that a double has.
    if (typeof pointer !== "number") return undefined;
    new Uint8Array(toArrayBuffer(pointer, 0, code.length)).set(code);
    const release = () => void munmap(pointer, code.length);
    if (mprotect(pointer, code.length, PROT_READ | PROT_EXEC) === 0)
      return new ExecutableMemory(pointer, release);
    release();
    return undefined;
  }

  /** No thread may be executing it. */
  dispose(): void {
    this.#release?.();
    this.#release = undefined;
  }
}

/** Calls code with up to three addresses. */
export type CallCode = (a: number, b: number, c: number) => void;

/** The code at `address` as a function, in this thread. */
export function functionAt(address: number): CallCode {
  return CFunction({
    ptr: address as Pointer,
    args: ["ptr", "ptr", "ptr"],
    returns: "void",
  }) as unknown as CallCode;
}
