import type { DType } from "../../base/dtype.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../tensor.ts";

/**
 * Memory of an op's own, between one of its kernels and the next. Grown buffers are kept: a captured graph may hold their
 * addresses. Growing allocates, which capturing forbids, so run the op at its largest once before.
 */
export class Scratch {
  #current: DeviceBuffer | undefined;

  constructor(private readonly allocate: (byteLength: number) => DeviceBuffer) {}

  /** At least `byteLength` bytes. */
  atLeast(byteLength: number): DeviceBuffer {
    if (this.#current === undefined || this.#current.byteLength < byteLength)
      this.#current = this.allocate(byteLength);
    return this.#current;
  }

  /** A tensor on the memory. Contents are undefined. */
  tensor(dtype: DType, shape: readonly number[]): Tensor {
    return new Tensor(this.atLeast(byteLengthOf(dtype, shape)), dtype, shape);
  }
}
