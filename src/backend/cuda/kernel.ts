import { ptr } from "bun:ffi";
import {
  type CudaApi,
  LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
} from "../../cuda/driver-symbols.ts";
import { callCuda, checkCuda } from "../../cuda/errors.ts";
import type { KernelFunction } from "../../cuda/module.ts";
import { ARGUMENT_BYTES, compilePacker, type KernelArguments } from "./argument-packer.ts";
import type { KernelParameter } from "./kernel-signature.ts";

/** Shared memory that a block may declare, or ask for without permission. */
export const STATIC_SHARED_BYTES = 48 * 1024;

/** CUlaunchConfig: seven u32, then stream at 32, attributes at 40, their count at 48. */
const CONFIG_BYTES = 56;
/** CUlaunchAttribute: id at 0, value at 8, padded to 64 bytes. */
const ATTRIBUTE_BYTES = 72;

export interface KernelOptions {
  /**
   * Programmatic dependent launch: the kernel may start before the one ahead of it in the stream has finished, and
   * must execute `griddepcontrol.wait` before it reads that one's results. Needs compute capability 9.0.
   */
  readonly dependentLaunch?: boolean;
}

/**
 * A kernel with the memory its arguments are packed into, by the parameters that its source declares. The driver has
 * copied them when `launch` returns.
 */
export class Kernel<A extends object = KernelArguments> {
  readonly #api: CudaApi;
  readonly #pack: (args: A) => void;
  /** The `void *[]` of the packed arguments' addresses; kept, as the driver reads it at every launch. */
  readonly #pointers: BigUint64Array;
  readonly #arguments: number;
  readonly #config: LaunchConfig | undefined;
  #allowedSharedBytes = STATIC_SHARED_BYTES;

  constructor(
    readonly fn: KernelFunction,
    readonly parameters: readonly KernelParameter[],
    options: KernelOptions = {},
  ) {
    this.#api = fn.api;
    // Room for one at least, so that a kernel without arguments has addresses too.
    const count = Math.max(1, parameters.length);
    const values = new ArrayBuffer(count * ARGUMENT_BYTES);
    const first = ptr(values);
    this.#pointers = new BigUint64Array(new ArrayBuffer(count * 8));
    for (let i = 0; i < count; i++) this.#pointers[i] = BigInt(first + i * ARGUMENT_BYTES);
    this.#arguments = ptr(this.#pointers);
    this.#pack = compilePacker(fn.name, parameters, values, this.#pointers.buffer as ArrayBuffer);
    this.#config = options.dependentLaunch ? new LaunchConfig() : undefined;
  }

  /**
   * Clusters of a kernel that is compiled for them, of x and z CTAs in these directions, that the GPU runs at once: a cluster finds its
   * multiprocessors in one part of the GPU, whose number need not be a multiple of its size.
   */
  residentClusters(x: number, z: number, block: number, sharedBytes: number): number {
    this.#allow(sharedBytes);
    const config = new LaunchConfig();
    config.set(0, x, 1, z, block, sharedBytes);
    const out = new Int32Array(1);
    callCuda(this.#api, "cuOccupancyMaxActiveClusters", [out, this.fn.value, config.address], this.fn.name);
    return out[0]!;
  }

  /**
   * Enqueues the kernel.
   *
   * @param gridX Blocks, in x, y and z.
   * @param block Threads a block.
   * @param sharedBytes Dynamic shared memory a block; above 48 KiB it is allowed first.
   * @param args A value for each parameter, by its name.
   * @throws InvariantError for a value that the parameter's type cannot hold.
   */
  launch(
    stream: number,
    gridX: number,
    gridY: number,
    gridZ: number,
    block: number,
    sharedBytes: number,
    args: A,
  ): void {
    this.#pack(args);
    this.#allow(sharedBytes);
    let status: number;
    if (this.#config === undefined) {
      status = this.#api.cuLaunchKernel(
        this.fn.value,
        gridX,
        gridY,
        gridZ,
        block,
        1,
        1,
        sharedBytes,
        stream,
        this.#arguments,
        0,
      );
    } else {
      this.#config.set(stream, gridX, gridY, gridZ, block, sharedBytes);
      status = this.#api.cuLaunchKernelEx(this.#config.address, this.fn.value, this.#arguments, 0);
    }
    if (status === 0) return;
    const shape = `${this.fn.name}, grid [${gridX}, ${gridY}, ${gridZ}], block ${block}, ${sharedBytes} bytes shared`;
    checkCuda(this.#api, this.#config === undefined ? "cuLaunchKernel" : "cuLaunchKernelEx", status, shape);
  }

  #allow(sharedBytes: number): void {
    if (sharedBytes <= this.#allowedSharedBytes) return;
    this.fn.allowSharedMemory(sharedBytes);
    this.#allowedSharedBytes = sharedBytes;
  }
}

/** A CUlaunchConfig with programmatic stream serialization switched on. */
class LaunchConfig {
  readonly #words = new Uint32Array(new ArrayBuffer(CONFIG_BYTES));
  readonly #attribute = new Uint32Array(new ArrayBuffer(ATTRIBUTE_BYTES));
  readonly address = ptr(this.#words);

  constructor() {
    this.#attribute[0] = LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    this.#attribute[2] = 1;
    this.#setPointer(10, ptr(this.#attribute));
    this.#words[12] = 1;
    this.#words[4] = 1;
    this.#words[5] = 1;
  }

  set(stream: number, gridX: number, gridY: number, gridZ: number, block: number, sharedBytes: number): void {
    const words = this.#words;
    words[0] = gridX;
    words[1] = gridY;
    words[2] = gridZ;
    words[3] = block;
    words[6] = sharedBytes;
    this.#setPointer(8, stream);
  }

  #setPointer(word: number, address: number): void {
    this.#words[word] = address;
    this.#words[word + 1] = address / 0x1_0000_0000;
  }
}
