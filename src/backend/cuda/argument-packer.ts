import { InvariantError } from "../../base/errors.ts";
import type { KernelParameter, ParameterType } from "./kernel-signature.ts";

/** The target of a pointer argument: a tensor, a buffer. */
export interface Addressed {
  readonly address: number;
}

/** A value in host memory that a kernel takes whole: a tensor map, a table. The memory must not move. */
export interface HostValue {
  readonly hostAddress: number;
}

/** A launch's arguments by the names of the kernel's parameters: memory or null for a pointer, else a value. */
export type KernelArguments = Readonly<Record<string, Addressed | HostValue | null | number>>;

/** Bytes of an argument's place in memory. */
export const ARGUMENT_BYTES = 8;

/** Statements that check `v`, the value of argument `i`, and write it as its two 32-bit words. */
const STORE: Readonly<Record<ParameterType, (i: number) => string>> = {
  pointer: (i) => `
    v = v === null ? 0 : v?.address;
    if (!(v >= 0)) refuse(${i}, v);
    u32[${2 * i}] = v;
    u32[${2 * i + 1}] = v / 0x1_0000_0000;`,
  int32: (i) => `
    if ((v | 0) !== v) refuse(${i}, v);
    i32[${2 * i}] = v;`,
  uint32: (i) => `
    if (v >>> 0 !== v) refuse(${i}, v);
    u32[${2 * i}] = v;`,
  int64: (i) => `
    if (!Number.isSafeInteger(v)) refuse(${i}, v);
    u32[${2 * i}] = v;
    i32[${2 * i + 1}] = Math.floor(v / 0x1_0000_0000);`,
  float32: (i) => `
    if (typeof v !== "number") refuse(${i}, v);
    f32[${2 * i}] = v;`,
  hostValue: (i) => `
    v = v?.hostAddress;
    if (!(v > 0)) refuse(${i}, v);
    at[${2 * i}] = v;
    at[${2 * i + 1}] = v / 0x1_0000_0000;`,
};

/**
 * A function that writes a launch's arguments to `memory`, `ARGUMENT_BYTES` each in the order of the parameters, or throws
 * `InvariantError` for a value that its parameter cannot take. Of a value in host memory it writes the address to `addresses`,
 * the `void *[]` of the launch, which for all others stays as it is. It is generated code, in which each argument is read by a
 * constant name: a loop over the names takes three times as long, at every launch. Names are those of the kernel's source.
 */
export function compilePacker<A extends object>(
  kernel: string,
  parameters: readonly KernelParameter[],
  memory: ArrayBuffer,
  addresses: ArrayBuffer,
): (args: A) => void {
  const refuse = (i: number, value: unknown) => {
    const { name, type } = parameters[i]!;
    throw new InvariantError(`${kernel}: ${name} is ${String(value)}, expected ${type}`);
  };
  const statements = parameters.map(({ name, type }, i) => `v = args.${name};${STORE[type](i)}`);
  const build = new Function(
    ...["u32", "i32", "f32", "at", "refuse"],
    `return (args) => { let v; ${statements.join("\n")} };`,
  ) as (
    u32: Uint32Array,
    i32: Int32Array,
    f32: Float32Array,
    at: Uint32Array,
    fail: typeof refuse,
  ) => (args: A) => void;
  const views = [new Uint32Array(memory), new Int32Array(memory), new Float32Array(memory)] as const;
  return build(...views, new Uint32Array(addresses), refuse);
}
