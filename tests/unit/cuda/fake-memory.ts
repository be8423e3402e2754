import { ptr } from "bun:ffi";

/** How much of an allocation is poisoned: the whole of large ones would take long. */
const POISONED_BYTES = 2 ** 16;

/** Allocations in host memory, by their real addresses. */
export class FakeMemory {
  readonly #live = new Map<number, Uint8Array>();
  readonly #retired: Uint8Array[] = [];

  /** The address of so many bytes, of which none is zero. */
  allocate(count: number): number {
    const bytes = new Uint8Array(new ArrayBuffer(count)).fill(0xa5, 0, POISONED_BYTES);
    const address = ptr(bytes);
    this.#live.set(address, bytes);
    return address;
  }

  /** What is freed stays mapped, so that its address is never given out again. */
  free(address: number): void {
    const bytes = this.#live.get(address);
    if (bytes) this.#retired.push(bytes.fill(0xdd, 0, POISONED_BYTES));
    this.#live.delete(address);
  }

  /** The bytes of a live allocation. */
  bytesOf(address: number): Uint8Array {
    return this.#live.get(address)!;
  }

  /** `count` bytes at an address, if they lie in one live allocation. */
  at(address: number, count: number): Uint8Array | undefined {
    for (const [start, bytes] of this.#live)
      if (start <= address && address + count <= start + bytes.length)
        return bytes.subarray(address - start, address - start + count);
    return undefined;
  }
}
