import type { Context } from "./context.ts";
import { DriverHandle } from "./driver-handle.ts";
import { type CudaApi, FunctionAttribute } from "./driver-symbols.ts";
import { callCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";

/** Bytes of a multiprocessor's shared memory that the driver keeps for each block. */
const RESERVED_BYTES = 1024;

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
    this.#set(FunctionAttribute.maxDynamicSharedBytes, bytes, detail);
  }

  /**
   * Asks for no more shared memory than blocks of so many threads need, as many as fit a multiprocessor, so that the rest of its
   * memory is L1 cache, where loads in flight wait. Without it, a kernel that starts while one with much shared memory is still
   * there runs in that one's division until all its blocks have ended.
   */
  preferCache(blockThreads: number): void {
    const { context } = this.module;
    const out = new Int32Array(1);
    callCuda(this.api, "cuFuncGetAttribute", [out, FunctionAttribute.sharedBytes, this.value], this.name);
    const sharedBytes = out[0]! + RESERVED_BYTES;
    callCuda(
      this.api,
      "cuOccupancyMaxActiveBlocksPerMultiprocessor",
      [out, this.value, blockThreads, 0],
      this.name,
    );
    const share = (out[0]! * sharedBytes) / context.device.sharedMemoryPerMultiprocessor;
    const percent = Math.min(100, Math.ceil(100 * share));
    this.#set(FunctionAttribute.preferredSharedPercent, percent, `${percent}% in ${this.name}`);
  }

  #set(attribute: number, value: number, detail: string): void {
    callCuda(this.api, "cuFuncSetAttribute", [this.value, attribute, value], detail);
  }
}
