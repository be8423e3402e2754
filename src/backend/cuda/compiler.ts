import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { cacheFolder } from "../../base/cache-folder.ts";
import type { CompileRequest, KernelCompiler } from "../../cuda/nvrtc.ts";
import type { NvrtcFiles } from "../../cuda/open-cuda.ts";
import { compileInWorkers } from "./compile-pool.ts";
import { CubinCache } from "./cubin-cache.ts";
import { compileKey, type KernelUnit, readKernelUnit } from "./kernel-source.ts";

export interface CompilerOptions {
  /** The folder of the `.cu` files. */
  readonly sourceFolder: string;
  /** `sm_90a` and the like, see `archOf`. */
  readonly arch: string;
  /** More compiler options, e.g. `--generate-line-info` for profiling. */
  readonly extraOptions?: readonly string[];
  /** The folder of the disk cache. Default: see `cacheFolder`. */
  readonly cacheFolder?: string;
  /** Allows Workers, each with an NVRTC of its own, when several units miss the cache. */
  readonly nvrtcFiles?: NvrtcFiles;
  /** Told about compiler warnings and an unusable cache. Default `console.warn`. */
  readonly warn?: (message: string) => void;
}

/** Compiles the kernels of a folder to cubins, through the disk cache. */
export class Compiler {
  readonly #cache: CubinCache;
  readonly #warn: (message: string) => void;

  constructor(
    private readonly nvrtc: KernelCompiler,
    private readonly options: CompilerOptions,
  ) {
    this.#warn = options.warn ?? console.warn;
    this.#cache = new CubinCache(options.cacheFolder ?? cacheFolder("kernels"), this.#warn);
  }

  /** The text of a file of the source folder, without what it includes. */
  source(file: string): string {
    return readFileSync(join(this.options.sourceFolder, file), "utf8");
  }

  /** Changes whenever what a file compiles to may: its text, what it includes, the architecture, the compiler. */
  digest(file: string): string {
    return compileKey(this.#request({ file }), this.nvrtc.version);
  }

  /** The cubin of one unit. Throws `NvrtcError` with the log when it does not compile. */
  compile(unit: KernelUnit): Uint8Array {
    const request = this.#request(unit);
    const key = compileKey(request, this.nvrtc.version);
    return this.#cache.get(key) ?? this.#keep(request, key, this.nvrtc.compile(request));
  }

  /** The cubins of many units, in their order, compiling in parallel what the cache lacks. */
  async compileAll(units: readonly KernelUnit[]): Promise<Uint8Array[]> {
    const requests = units.map((unit) => this.#request(unit));
    const keys = requests.map((request) => compileKey(request, this.nvrtc.version));
    const cubins = keys.map((key): Uint8Array | undefined => this.#cache.get(key));
    const missing = cubins.flatMap((cubin, i) => (cubin === undefined ? [i] : []));
    const workers = Math.min(missing.length, availableParallelism(), 8);
    const { nvrtcFiles } = this.options;
    const wanted = missing.map((i) => requests[i]!);
    const results =
      workers > 1 && nvrtcFiles !== undefined
        ? await compileInWorkers(wanted, nvrtcFiles, workers)
        : wanted.map((request) => this.nvrtc.compile(request));
    for (const [at, i] of missing.entries()) cubins[i] = this.#keep(requests[i]!, keys[i]!, results[at]!);
    return cubins.map((cubin) => cubin!);
  }

  #request(unit: KernelUnit): CompileRequest {
    const { sourceFolder, arch, extraOptions = [] } = this.options;
    return readKernelUnit(unit, sourceFolder, [
      `--gpu-architecture=${arch}`,
      "--std=c++17",
      "--device-as-default-execution-space",
      ...extraOptions,
    ]);
  }

  #keep(
    request: CompileRequest,
    key: string,
    { cubin, log }: { cubin: Uint8Array; log: string },
  ): Uint8Array {
    if (log !== "") this.#warn(`${request.name}: ${log}`);
    this.#cache.put(key, cubin);
    return cubin;
  }
}

/**
 * NVRTC's name of a compute capability. Hopper's asynchronous tensor-core instructions exist only under its
 * architecture-specific name; kernels for other GPUs use portable instructions.
 */
export function archOf(major: number, minor: number): string {
  return `sm_${major}${minor}${major === 9 && minor === 0 ? "a" : ""}`;
}
