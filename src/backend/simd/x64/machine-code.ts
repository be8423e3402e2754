import type { CpuKernels } from "../../../base/config.ts";
import { ConfigError } from "../../../base/errors.ts";
import { ExecutableMemory } from "./executable-memory.ts";
import { isaOf, readFeatures } from "./features.ts";
import { AVX2, AVX512, type Isa } from "./forms.ts";
import { assembleProducts, type ProductCode } from "./product-code.ts";

/** What kernels are asked for by name. */
export type FoundKernels = Exclude<CpuKernels, "auto">;

/** Products' code where it can be executed. */
export class MachineCode {
  private constructor(
    readonly products: ProductCode,
    readonly memory: ExecutableMemory,
  ) {}

  /**
   * Undefined for `wasm`, and for `auto` where the processor has none of the vectors, or the system does not execute what is written.
   * @param usable the widest vectors that this machine has code assembled for
   * @throws ConfigError for others that the machine does not have
   */
  static open(kernels: CpuKernels, usable: () => Isa | undefined = usableIsa): MachineCode | undefined {
    if (kernels === "wasm") return undefined;
    const widest = usable();
    const isa = kernels === "auto" ? widest : kernels === "avx512" ? AVX512 : AVX2;
    if (isa !== undefined && widest !== undefined && isa.lanes <= widest.lanes) {
      const products = assembleProducts(isa);
      const memory = ExecutableMemory.create(products.bytes);
      if (memory !== undefined) return new MachineCode(products, memory);
    }
    if (kernels === "auto") return undefined;
    const found = widest === undefined ? "no code that is assembled" : `at most ${widest.name}`;
    throw new ConfigError("cpuKernels", `cpuKernels is "${kernels}", but this machine executes ${found}`);
  }

  get address(): number {
    return this.memory.address;
  }

  /** No thread may be executing it. */
  dispose(): void {
    this.memory.dispose();
  }
}

/** What computes products on this machine where these are asked for. @throws ConfigError as `MachineCode.open` */
export function findKernels(kernels: CpuKernels = "auto"): FoundKernels {
  const code = MachineCode.open(kernels);
  code?.dispose();
  return code?.products.isa.name ?? "wasm";
}

function usableIsa(): Isa | undefined {
  const features = readFeatures();
  return features && isaOf(features);
}
