import type { Context } from "./context.ts";
import { type CudaApi, FunctionAttribute } from "./driver-symbols.ts";
import { checkCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import { Handle } from "./handle.ts";

/** Device code loaded into a context. */
export class Module extends Handle {
  private constructor(
    readonly api: CudaApi,
    value: number,
    context: Context,
    private readonly name: string,
  ) {
    super(value, context);
  }

  /** Loads a cubin. `name` is its name in errors. */
  static load(context: Context, cubin: Uint8Array, name: string): Module {
    const out = new OutPointer();
    const { api } = context;
    checkCuda(api, "cuModuleLoadData", api.cuModuleLoadData(out.array, cubin), name);
    return new Module(api, out.value, context, name);
  }

  /** The `extern "C"` kernel called `entry`. It lives as long as the module. */
  function(entry: string): KernelFunction {
    const out = new OutPointer();
    const status = this.api.cuModuleGetFunction(out.array, this.value, entry);
    checkCuda(this.api, "cuModuleGetFunction", status, `${entry} in ${this.name}`);
    return new KernelFunction(this, entry, out.value);
  }

  protected override release(value: number): void {
    checkCuda(this.api, "cuModuleUnload", this.api.cuModuleUnload(value));
  }
}

/** A kernel of a module. */
export class KernelFunction {
  readonly api: CudaApi;

  constructor(
    private readonly module: Module,
    readonly name: string,
    private readonly handle: number,
  ) {
    this.api = module.api;
  }

  /** The CUfunction. Throws when the module has been disposed of. */
  get value(): number {
    void this.module.value;
    return this.handle;
  }

  /** Registers and spilled or local bytes per thread, and static shared bytes per block. */
  get resources(): { readonly registers: number; readonly localBytes: number; readonly sharedBytes: number } {
    return {
      registers: this.#attribute(FunctionAttribute.registers),
      localBytes: this.#attribute(FunctionAttribute.localBytes),
      sharedBytes: this.#attribute(FunctionAttribute.staticSharedBytes),
    };
  }

  /** Allows launches with up to `bytes` of dynamic shared memory; needed above 48 KiB. */
  allowSharedMemory(bytes: number): void {
    const status = this.api.cuFuncSetAttribute(this.value, FunctionAttribute.maxDynamicSharedBytes, bytes);
    checkCuda(this.api, "cuFuncSetAttribute", status, `${bytes} bytes of shared memory in ${this.name}`);
  }

  /** Blocks of `block` threads and `sharedBytes` of dynamic shared memory that fit one multiprocessor. */
  blocksPerMultiprocessor(block: number, sharedBytes: number): number {
    const blocks = new Int32Array(1);
    checkCuda(
      this.api,
      "cuOccupancyMaxActiveBlocksPerMultiprocessor",
      this.api.cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, this.value, block, sharedBytes),
      this.name,
    );
    return blocks[0]!;
  }

  #attribute(attribute: number): number {
    const value = new Int32Array(1);
    const status = this.api.cuFuncGetAttribute(value, attribute, this.value);
    checkCuda(this.api, "cuFuncGetAttribute", status, this.name);
    return value[0]!;
  }
}
