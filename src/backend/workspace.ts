import type { DType } from "../base/dtype.ts";
import { invariant } from "../base/errors.ts";
import type { Backend } from "./backend.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "./tensor.ts";

const LEAST_BYTES = 256;
const GROWTH = 1.5;

/** Bytes to allocate for `byteLength`: more than those when a buffer is outgrown, so that it is not outgrown again and again. */
export function grownLength(byteLength: number, outgrown = 0): number {
  const grown = outgrown === 0 ? LEAST_BYTES : Math.ceil((GROWTH * outgrown) / LEAST_BYTES) * LEAST_BYTES;
  return Math.max(byteLength, grown);
}

/**
 * Named scratch memory for activations. A name always gives the same memory, so a step allocates nothing, layers
 * share their intermediates, and addresses stay valid for captured graphs. Contents do not survive the next use of
 * the name. `freeze` fixes the buffers that exist: a captured graph may hold their addresses.
 */
export class Workspace {
  readonly #buffers = new Map<string, DeviceBuffer>();
  readonly #frozen = new Set<string>();
  /** The last tensor of a name: steps like the one before have the same. */
  readonly #tensors = new Map<string, Tensor>();
  #moves = 0;

  constructor(private readonly backend: Backend) {}

  /** How often a name has been given other memory than before. */
  get moves(): number {
    return this.#moves;
  }

  /** A tensor on the memory called `name`, grown when needed. Contents are undefined. */
  tensor(name: string, dtype: DType, shape: readonly number[]): Tensor {
    const last = this.#tensors.get(name);
    if (last?.dtype === dtype && isSameShape(last.shape, shape)) return last;
    const bytes = byteLengthOf(dtype, shape);
    let buffer = this.#buffers.get(name);
    if (buffer === undefined || buffer.byteLength < bytes) {
      const outgrown = buffer?.byteLength;
      invariant(
        !this.#frozen.has(name),
        `workspace buffer "${name}" is captured and cannot grow to ${bytes} bytes`,
      );
      if (outgrown !== undefined) this.#moves++;
      // A buffer that is gone must not be found again when there is no memory for its successor.
      this.#buffers.delete(name);
      this.#tensors.delete(name);
      buffer?.dispose();
      buffer = this.backend.allocate(grownLength(bytes, outgrown));
      this.#buffers.set(name, buffer);
    }
    const tensor = new Tensor(buffer, dtype, shape);
    this.#tensors.set(name, tensor);
    return tensor;
  }

  /** From here on, a buffer that exists now may not grow: that would be a bug. */
  freeze(): void {
    for (const name of this.#buffers.keys()) this.#frozen.add(name);
  }

  dispose(): void {
    for (const buffer of this.#buffers.values()) buffer.dispose();
    this.#buffers.clear();
    this.#tensors.clear();
  }
}

function isSameShape(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((extent, i) => extent === b[i]);
}
