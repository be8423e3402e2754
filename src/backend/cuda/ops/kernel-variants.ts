import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import type { Tensor } from "../../tensor.ts";
import type { Kernel, KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";

const ELEMENT: Record<FloatDType, string> = {
  bfloat16: "DTYPE_BF16",
  float16: "DTYPE_F16",
  float32: "DTYPE_F32",
};

/** Selects `elem_t` in types.cuh. */
export function elementDefine(dtype: FloatDType): Record<string, number> {
  return { [ELEMENT[dtype]]: 1 };
}

/** Bytes of a vector access, which must be aligned to as many. */
export const VECTOR_BYTES = 16;

/** Elements a thread accesses at once: a 16-byte vector where `width` and every address allow it, else one. */
export function accessWidth(dtype: FloatDType, width: number, ...tensors: (Tensor | undefined)[]): number {
  const vector = VECTOR_BYTES / dtypeSize(dtype);
  const aligned = tensors.every((tensor) => tensor === undefined || tensor.address % VECTOR_BYTES === 0);
  return width % vector === 0 && aligned ? vector : 1;
}

/** A kernel entry with its specialisations: one that was used before is found without building strings. */
export class KernelVariants {
  readonly #kernels = new Map<number, Kernel>();

  constructor(
    private readonly library: KernelLibrary,
    private readonly file: string,
    private readonly entry: string,
    private readonly signature: string,
    private readonly dtype: FloatDType,
    private readonly options: KernelOptions,
  ) {}

  /** What `get` compiles under these macros. */
  unit(defines: Readonly<Record<string, number>> = {}): KernelUnit {
    return { file: this.file, defines: { ...elementDefine(this.dtype), ...defines } };
  }

  /** The kernel under these macros; `key` must differ for different values of them. */
  get(key = 0, defines: Readonly<Record<string, number>> = {}): Kernel {
    let kernel = this.#kernels.get(key);
    if (kernel === undefined) {
      const unit = this.unit(defines);
      kernel = this.library.kernel(unit.file, this.entry, this.signature, unit.defines, this.options);
      this.#kernels.set(key, kernel);
    }
    return kernel;
  }
}
