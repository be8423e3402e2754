import type { DType } from "../../base/dtype.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../tensor.ts";
import { grownLength } from "../workspace.ts";

/**
 * Memory of an op's own, between one of its kernels and the next. It grows by a factor, and gives back what it outgrew: the
 * allocator keeps that as long as a captured graph may hold its address. Growing allocates, which capturing forbids, so run
 * the op at its largest once before.
 */
export class Scratch {
  #current: DeviceBuffer | undefined;

  constructor(private readonly allocate: (byteLength: number) => DeviceBuffer) {}

  /** At least `byteLength` bytes. */
  atLeast(byteLength: number): DeviceBuffer {
    const outgrown = this.#current;
    if (outgrown !== undefined && outgrown.byteLength >= byteLength) return outgrown;
    this.#current = this.allocate(grownLength(byteLength, outgrown?.byteLength));
    outgrown?.dispose();
    return this.#current;
  }

  /** A tensor on the memory. Contents are undefined. */
  tensor(dtype: DType, shape: readonly number[]): Tensor {
    return new Tensor(this.atLeast(byteLengthOf(dtype, shape)), dtype, shape);
  }
}
