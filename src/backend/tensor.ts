import { type DType, dtypeSize } from "../base/dtype.ts";
import { InvariantError } from "../base/errors.ts";

/** Memory of a backend. Owned by whoever allocated it; tensors are views and own nothing. */
export interface DeviceBuffer {
  readonly byteLength: number;
  /** The device address; on a CPU, the offset in `host`. */
  readonly address: number;
  /**
   * The bytes, where the host can reach them: all memory on a CPU, and shared memory, of which it has the buffer's alone. On a CPU it
   * may hold more than this buffer.
   */
  readonly host?: ArrayBufferLike;
  /** Gives the memory back. Safe to call twice. */
  dispose(): void;
}

/** Bytes that a tensor takes. */
export function byteLengthOf(dtype: DType, shape: readonly number[]): number {
  return shape.reduce((product, extent) => product * extent, dtypeSize(dtype));
}

/** A contiguous, row-major view of a buffer. */
export class Tensor {
  readonly size: number;
  readonly byteLength: number;

  constructor(
    readonly buffer: DeviceBuffer,
    readonly dtype: DType,
    readonly shape: readonly number[],
    /** Offset of the first element in the buffer, in bytes. */
    readonly byteOffset = 0,
  ) {
    let size = 1;
    for (let i = 0; i < shape.length; i++) size *= shape[i]!;
    this.size = size;
    this.byteLength = size * dtypeSize(dtype);
    // Tensors are made and asked in every step: a message is built when it is needed.
    if (byteOffset + this.byteLength > buffer.byteLength)
      throw new InvariantError(`${this} at ${byteOffset} overruns a buffer of ${buffer.byteLength} bytes`);
  }

  /** Device address of the first element. */
  get address(): number {
    return this.buffer.address + this.byteOffset;
  }

  /** Extent of dimension `i`; negative counts from the end. */
  dim(i: number): number {
    const extent = this.shape[i < 0 ? i + this.shape.length : i];
    if (extent === undefined) throw new InvariantError(`tensor [${this.shape}] has no dimension ${i}`);
    return extent;
  }

  /** Rows `[start, end)` of dimension 0, sharing memory. */
  rows(start: number, end: number): Tensor {
    if (!(0 <= start && start <= end && end <= this.dim(0)))
      throw new InvariantError(`rows [${start}, ${end}) of [${this.shape}]`);
    if (end - start === this.shape[0]) return this;
    const rowBytes = this.byteLength / Math.max(1, this.dim(0));
    return new Tensor(
      this.buffer,
      this.dtype,
      [end - start, ...this.shape.slice(1)],
      this.byteOffset + start * rowBytes,
    );
  }

  /** The same elements under another shape. */
  reshape(...shape: number[]): Tensor {
    const view = new Tensor(this.buffer, this.dtype, shape, this.byteOffset);
    if (view.size !== this.size) throw new InvariantError(`cannot reshape [${this.shape}] to [${shape}]`);
    return view;
  }

  toString(): string {
    return `${this.dtype}[${this.shape.join(", ")}]`;
  }
}
