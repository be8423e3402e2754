import { dlopen, type FFIFunction } from "bun:ffi";

/** The C library's names, where it may be called so. */
const NAMES: Readonly<Record<string, readonly string[]>> = {
  linux: ["libc.so.6", "libc.musl-x86_64.so.1", "libc.musl-aarch64.so.1"],
  darwin: ["libSystem.B.dylib"],
};

/** Functions of the C library; undefined where there is none that has them. */
export function openLibc<Symbols extends Record<string, FFIFunction>>(symbols: Symbols) {
  for (const name of NAMES[process.platform] ?? []) {
    try {
      return dlopen(name, symbols).symbols;
    } catch {
      // The next name.
    }
  }
  return undefined;
}
