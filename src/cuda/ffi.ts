import { dlopen as bunDlopen, CString, type Pointer, toArrayBuffer } from "bun:ffi";

/** C types of native functions: `ptr` also for opaque handles, `u64` for device addresses and sizes. */
type ArgumentType = "ptr" | "cstring" | "i32" | "u32" | "u8" | "i64" | "u64" | "f32";
type ReturnType = "i32" | "ptr" | "cstring" | "u64";

interface NativeSignature {
  readonly args: readonly ArgumentType[];
  readonly returns: ReturnType;
}
export type SymbolTable = Readonly<Record<string, NativeSignature>>;

/**
 * The value of a `ptr` argument: an address, or a typed array, which stands for the address of its first byte. NULL is
 * 0, not null, which is ten times slower to convert.
 */
export type Address = number | NodeJS.TypedArray;

type ArgumentValue<T extends ArgumentType> = T extends "ptr"
  ? Address
  : T extends "cstring"
    ? string
    : number;
type ArgumentValues<T extends readonly ArgumentType[]> = { -readonly [I in keyof T]: ArgumentValue<T[I]> };
type ReturnValue<T extends ReturnType> = T extends "cstring"
  ? string | null
  : T extends "u64"
    ? bigint
    : number;

/** The functions of a native library, typed after its symbol table. */
export type NativeApi<Table extends SymbolTable> = {
  readonly [Name in keyof Table]: (
    ...args: ArgumentValues<Table[Name]["args"]>
  ) => ReturnValue<Table[Name]["returns"]>;
};

/** The functions of a library that return a status. */
export type StatusFunction<Api> = {
  [Name in keyof Api]: Api[Name] extends (...args: never[]) => number ? Name : never;
}[keyof Api] &
  string;

/** The arguments of a function of a library. */
export type Arguments<Api, Name extends keyof Api> = Api[Name] extends (...args: infer A) => unknown
  ? A
  : never;

/** Calls a function by its name, which then need not be repeated where failures are reported. */
export function callNative<Api, Name extends StatusFunction<Api>>(
  api: Api,
  name: Name,
  args: Arguments<Api, Name>,
): number {
  return (api[name] as (...args: readonly unknown[]) => number)(...args);
}

/** Opens a library and resolves every symbol of the table. Throws when the library or a symbol is missing. */
export type OpenLibrary = <const Table extends SymbolTable>(path: string, symbols: Table) => NativeApi<Table>;

export const openLibrary: OpenLibrary = (path, symbols) =>
  bunDlopen(path, symbols).symbols as unknown as NativeApi<typeof symbols>;

const RTLD_NOW = 2;
const RTLD_GLOBAL = 0x100;

/**
 * Loads a library for the sake of another that will look it up by its soname. Returns the loader's complaint, or
 * undefined when it is loaded.
 */
export function preloadLibrary(path: string): string | undefined {
  const libc = openLibrary("libc.so.6", {
    dlopen: { args: ["cstring", "i32"], returns: "ptr" },
    dlerror: { args: [], returns: "cstring" },
  });
  if (libc.dlopen(path, RTLD_NOW | RTLD_GLOBAL)) return undefined;
  return libc.dlerror() ?? "unknown loader error";
}

/** Sets a variable of the process's environment, as native libraries read it, unless it is set. `process.env` stays as it is. */
export function setDefaultEnvironment(name: string, value: string): void {
  const libc = openLibrary("libc.so.6", {
    setenv: { args: ["cstring", "cstring", "i32"], returns: "i32" },
  });
  libc.setenv(name, value, 0);
}

/** The NUL-terminated string at `address`; undefined at NULL. */
export function readCString(address: number): string | undefined {
  return address === 0 ? undefined : new CString(address as Pointer).toString();
}

/** `byteLength` bytes of host memory at `address`. The memory stays its owner's. */
export function viewMemory(address: number, byteLength: number): ArrayBuffer {
  return toArrayBuffer(address as Pointer, 0, byteLength);
}

/** Memory for an out parameter of a pointer's size. */
export class OutPointer {
  readonly array = new BigUint64Array(new ArrayBuffer(8));

  /** The value written by the last call. Addresses and sizes fit a double. */
  get value(): number {
    return Number(this.array[0]);
  }
}
