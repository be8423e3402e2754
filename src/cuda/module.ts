import type { Context } from "./context.ts";
import { DriverHandle } from "./driver-handle.ts";
import { type CudaApi, FUNCTION_MAX_DYNAMIC_SHARED_BYTES } from "./driver-symbols.ts";
import { callCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";

/** Device code loaded into a context. */
export class Module extends DriverHandle {
  protected readonly destroy = "cuModuleUnload";

  private constructor(
    context: Context,
    value: number,
    private readonly name: string,
  ) {
    super(context, value);
  }

  /** Loads a cubin. `name` is its name in errors. */
  static load(context: Context, cubin: Uint8Array, name: string): Module {
    const out = new OutPointer();
    callCuda(context.api, "cuModuleLoadData", [out.array, cubin], name);
    return new Module(context, out.value, name);
  }

  /** The `extern "C"` kernel called `entry`. It lives as long as the module. */
  function(entry: string): KernelFunction {
    const out = new OutPointer();
    callCuda(this.api, "cuModuleGetFunction", [out.array, this.value, entry], `${entry} in ${this.name}`);
    return new KernelFunction(this, entry, out.value);
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

  /** Allows launches with up to `bytes` of dynamic shared memory; needed above 48 KiB. */
  allowSharedMemory(bytes: number): void {
    const detail = `${bytes} bytes of shared memory in ${this.name}`;
    callCuda(this.api, "cuFuncSetAttribute", [this.value, FUNCTION_MAX_DYNAMIC_SHARED_BYTES, bytes], detail);
  }
}
