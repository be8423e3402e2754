import type { Context } from "../../cuda/context.ts";
import { DeviceMemory, PinnedMemory } from "../../cuda/memory.ts";
import type { DeviceBuffer } from "../tensor.ts";

/** GPU memory under tensors. Throws `CudaOutOfMemoryError`, with the bytes asked for and free, when there is not enough. */
export class CudaBuffer implements DeviceBuffer {
  readonly #memory: DeviceMemory;

  constructor(
    context: Context,
    /** May be 0: such a buffer still has an address of its own. */
    readonly byteLength: number,
    /** Called before the memory is freed: ops that were asked for may still be held back. */
    private readonly beforeFree?: () => void,
  ) {
    this.#memory = DeviceMemory.allocate(context, Math.max(1, byteLength));
  }

  get address(): number {
    return this.#memory.value;
  }

  dispose(): void {
    if (!this.#memory.isDisposed) this.beforeFree?.();
    this.#memory.dispose();
  }
}

/** Page-locked memory of the host under tensors, which the GPU reads and writes across the bus at the host's own address. */
export class SharedBuffer implements DeviceBuffer {
  readonly #memory: PinnedMemory;

  constructor(
    context: Context,
    readonly byteLength: number,
  ) {
    this.#memory = PinnedMemory.allocate(context, Math.max(1, byteLength));
  }

  get address(): number {
    return this.#memory.value;
  }

  get host(): ArrayBuffer {
    return this.#memory.bytes;
  }

  dispose(): void {
    this.#memory.dispose();
  }
}
