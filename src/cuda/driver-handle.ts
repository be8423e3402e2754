import type { Context } from "./context.ts";
import type { CudaApi } from "./driver-symbols.ts";
import { callCuda } from "./errors.ts";
import { Handle } from "./handle.ts";

/** The functions of the driver that give back what a context owns. */
type Destroy =
  | "cuEventDestroy_v2"
  | "cuGraphDestroy"
  | "cuGraphExecDestroy"
  | "cuMemFree_v2"
  | "cuMemFreeHost"
  | "cuModuleUnload"
  | "cuStreamDestroy_v2";

/** A resource of the driver that lives in a context, which owns it. */
export abstract class DriverHandle extends Handle {
  readonly api: CudaApi;
  protected abstract readonly destroy: Destroy;

  protected constructor(
    readonly context: Context,
    value: number,
  ) {
    super(value, context);
    this.api = context.api;
  }

  protected override release(value: number): void {
    callCuda(this.api, this.destroy, [value]);
  }
}
