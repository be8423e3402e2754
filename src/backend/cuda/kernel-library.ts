import { invariant } from "../../base/errors.ts";
import { programFile } from "../../base/program-file.ts";
import type { Context } from "../../cuda/context.ts";
import { Module } from "../../cuda/module.ts";
import type { KernelCompiler } from "../../cuda/nvrtc.ts";
import type { KernelArguments } from "./argument-packer.ts";
import { archOf, Compiler, type CompilerOptions } from "./compiler.ts";
import { Kernel, type KernelOptions } from "./kernel.ts";
import { type KernelParameter, parseKernels } from "./kernel-signature.ts";
import { type KernelUnit, unitKey, unitName } from "./kernel-source.ts";

/** The folder of Octavo's own kernels. */
export const KERNEL_FOLDER = programFile("kernels-cu");

/** The kernels of a source folder in one context, which owns them; compiled and loaded when first asked for. */
export class KernelLibrary {
  readonly #modules = new Map<string, Module>();
  readonly #kernels = new Map<string, Kernel<object>>();
  /** Parameters of the kernels of each file that was asked about. */
  readonly #sources = new Map<string, ReturnType<typeof parseKernels>>();

  constructor(
    private readonly context: Context,
    private readonly compiler: Compiler,
  ) {}

  /** For the context's GPU and Octavo's own kernels, unless the options say otherwise. */
  static create(
    context: Context,
    nvrtc: KernelCompiler,
    options: Partial<CompilerOptions> = {},
  ): KernelLibrary {
    const compiler = new Compiler(nvrtc, {
      sourceFolder: KERNEL_FOLDER,
      arch: archOf(...context.device.computeCapability),
      ...options,
    });
    return new KernelLibrary(context, compiler);
  }

  /**
   * The kernel `entry` of a unit; the same one every time.
   *
   * @throws NvrtcError with the log when the file does not compile; InvariantError when it has no such kernel.
   */
  kernel<A extends object = KernelArguments>(
    unit: KernelUnit,
    entry: string,
    options: KernelOptions = {},
  ): Kernel<A> {
    const key = [unitKey(unit), entry, options.dependentLaunch === true].join("\n");
    let kernel = this.#kernels.get(key);
    if (kernel === undefined) {
      const parameters = this.parameters(unit.file, entry);
      kernel = new Kernel<object>(this.#module(unit).function(entry), parameters, options);
      this.#kernels.set(key, kernel);
    }
    return kernel;
  }

  /** The parameters that a kernel's source declares. Nothing is compiled. @throws InvariantError for an unknown kernel. */
  parameters(file: string, entry: string): readonly KernelParameter[] {
    let kernels = this.#sources.get(file);
    if (kernels === undefined) {
      kernels = parseKernels(this.compiler.source(file));
      this.#sources.set(file, kernels);
    }
    const parameters = kernels.get(entry);
    invariant(parameters !== undefined, `${file} has no kernel ${entry}`);
    return parameters;
  }

  /** See `Compiler.digest`. */
  digest(file: string): string {
    return this.compiler.digest(file);
  }

  /** Compiles many units at once, in parallel, and loads them. */
  async prepare(units: readonly KernelUnit[]): Promise<void> {
    const missing = [...new Map(units.map((unit) => [unitKey(unit), unit]))]
      .filter(([key]) => !this.#modules.has(key))
      .map(([, unit]) => unit);
    const cubins = await this.compiler.compileAll(missing);
    // Whoever wanted the kernels may have given up meanwhile.
    if (this.context.isDisposed) return;
    for (const [i, unit] of missing.entries()) this.#load(unit, cubins[i]!);
  }

  #module(unit: KernelUnit): Module {
    return this.#modules.get(unitKey(unit)) ?? this.#load(unit, this.compiler.compile(unit));
  }

  /** Another caller may have loaded the unit while this one's was compiling. */
  #load(unit: KernelUnit, cubin: Uint8Array): Module {
    const key = unitKey(unit);
    let module = this.#modules.get(key);
    if (module === undefined) {
      module = Module.load(this.context, cubin, unitName(unit));
      this.#modules.set(key, module);
    }
    return module;
  }
}
