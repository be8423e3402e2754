import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { InvariantError } from "../../../base/errors.ts";
import type { Tensor } from "../../tensor.ts";
import type { Addressed, HostValue } from "../argument-packer.ts";
import type { Kernel, KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import { showParameters } from "../kernel-signature.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";

/** Threads of a warp. */
export const WARP = 32;
/** Bytes of a vector access, which must be aligned to as many. */
export const VECTOR_BYTES = 16;

/** Constants of types.cuh, and so of every kernel. */
const COMMON_CONSTANTS: Macros = { WARP, VECTOR_BYTES };

/** Macros that select `elem_t` in types.cuh. */
const ELEMENT: Record<FloatDType, Macros> = {
  bfloat16: { DTYPE_BF16: 1 },
  float16: { DTYPE_F16: 1 },
  float32: { DTYPE_F32: 1 },
};

/** `threads` made a whole number of warps. */
export function wholeWarps(threads: number): number {
  return Math.ceil(threads / WARP) * WARP;
}

/** Elements a thread accesses at once: a 16-byte vector where `width` and every address allow it, else one. */
export function accessWidth(dtype: FloatDType, width: number, ...tensors: (Tensor | undefined)[]): number {
  const vector = VECTOR_BYTES / dtypeSize(dtype);
  const aligned = tensors.every((tensor) => tensor === undefined || tensor.address % VECTOR_BYTES === 0);
  return width % vector === 0 && aligned ? vector : 1;
}

/** A kernel as its wrapper launches it. Its source declares the same parameters, in whatever order. */
export interface KernelDeclaration {
  readonly file: string;
  /** Macros that the file shares with the wrapper; the same in all declarations of the file. */
  readonly constants?: Macros;
  readonly entry: string;
  readonly pointers: readonly string[];
  readonly scalars: readonly string[];
  /** Arguments that it takes whole from host memory: tensor maps, tables. */
  readonly values?: readonly string[];
}

/** The arguments of a declared kernel, by name. */
export type ArgumentsOf<K extends KernelDeclaration> = Readonly<
  Record<K["pointers"][number], Addressed | null> &
    Record<K["scalars"][number], number> &
    (K extends { readonly values: readonly string[] } ? Record<K["values"][number], HostValue> : unknown)
>;

/** A kernel with its specialisations: one that was used before is found without building strings. */
export class KernelVariants<K extends KernelDeclaration> {
  readonly #kernels = new Map<number, Kernel<ArgumentsOf<K>>>();
  readonly #keys = new Map<string, number>();

  /** @throws InvariantError when the kernel's source declares other parameters. */
  constructor(
    private readonly library: KernelLibrary,
    private readonly declaration: K,
    private readonly dtype: FloatDType,
    private readonly options: KernelOptions,
  ) {
    const { file, entry, pointers, scalars, values = [] } = declaration;
    const parameters = library.parameters(file, entry);
    const agrees =
      parameters.length === pointers.length + scalars.length + values.length &&
      parameters.every(({ name, type }) => {
        const named = type === "pointer" ? pointers : type === "hostValue" ? values : scalars;
        return named.includes(name);
      });
    if (!agrees) {
      const given = [...pointers.map((name) => `${name}*`), ...values, ...scalars].join(", ");
      throw new InvariantError(
        `${file}: ${entry} takes (${showParameters(parameters)}), its wrapper gives (${given})`,
      );
    }
  }

  /** The unit that `get` compiles under these macros. */
  unit(defines: Macros = {}): KernelUnit {
    const { file, constants } = this.declaration;
    return {
      file,
      constants: { ...COMMON_CONSTANTS, ...constants },
      defines: { ...ELEMENT[this.dtype], ...defines },
    };
  }

  /** The kernel under these macros; `key` must differ for different values of them. */
  get(key = 0, defines: Macros = {}): Kernel<ArgumentsOf<K>> {
    let kernel = this.#kernels.get(key);
    if (kernel === undefined) {
      kernel = this.library.kernel<ArgumentsOf<K>>(this.unit(defines), this.declaration.entry, this.options);
      this.#kernels.set(key, kernel);
    }
    return kernel;
  }

  /** The kernel under these macros, found by their text: for callers that keep what they get, and do not call `get`. */
  of(defines: Macros): Kernel<ArgumentsOf<K>> {
    const text = JSON.stringify(defines);
    const key = this.#keys.get(text) ?? this.#keys.size;
    this.#keys.set(text, key);
    return this.get(key, defines);
  }
}
