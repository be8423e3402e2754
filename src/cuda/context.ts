import type { Device } from "./device.ts";
import { type CudaApi, CudaStatus } from "./driver-symbols.ts";
import { callCuda, checkCuda } from "./errors.ts";
import { OutPointer } from "./ffi.ts";
import { Handle } from "./handle.ts";

/** A GPU's primary context, which owns everything made in it. Current on the thread that retained it. */
export class Context extends Handle {
  private constructor(
    readonly api: CudaApi,
    readonly device: Device,
    value: number,
  ) {
    super(value);
  }

  /** Retains the device's primary context and makes it current on this thread. */
  static retain(api: CudaApi, device: Device): Context {
    const out = new OutPointer();
    const gpu = `GPU ${device.ordinal} (${device.name})`;
    callCuda(api, "cuDevicePrimaryCtxRetain", [out.array, device.id], gpu);
    const context = new Context(api, device, out.value);
    try {
      context.makeCurrent();
    } catch (error) {
      context.dispose();
      throw error;
    }
    return context;
  }

  /** Directs this thread's calls at this context: needed when a thread holds more than one. */
  makeCurrent(): void {
    callCuda(this.api, "cuCtxSetCurrent", [this.value]);
  }

  /** True if this GPU can reach the memory of another, by its CUdevice. */
  canReach(peerDevice: number): boolean {
    return this.device.canReach(this.api, peerDevice);
  }

  /**
   * Lets this GPU's kernels reach the memory that `cuMemAlloc` gave, or gives, to the context of another thread, by its
   * CUcontext, at the addresses that it has there. Safe to call twice. @throws CudaError where there is no way.
   */
  reach(peerContext: number): void {
    this.makeCurrent();
    const status = this.api.cuCtxEnablePeerAccess(peerContext, 0);
    if (status !== CudaStatus.peerAccessAlreadyEnabled) checkCuda(this.api, "cuCtxEnablePeerAccess", status);
  }

  /** Bytes of device memory, other processes' use included. */
  memory(): { readonly free: number; readonly total: number } {
    const free = new OutPointer();
    const total = new OutPointer();
    callCuda(this.api, "cuMemGetInfo_v2", [free.array, total.array]);
    return { free: free.value, total: total.value };
  }

  protected override release(): void {
    callCuda(this.api, "cuDevicePrimaryCtxRelease_v2", [this.device.id]);
  }
}
