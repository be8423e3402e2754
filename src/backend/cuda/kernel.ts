import { ptr } from "bun:ffi";
import { InvariantError, invariant } from "../../base/errors.ts";
import {
  type CudaApi,
  LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
} from "../../cuda/driver-symbols.ts";
import { checkCuda } from "../../cuda/errors.ts";
import type { KernelFunction } from "../../cuda/module.ts";

/** Dynamic shared memory that needs no permission. */
const DEFAULT_SHARED_BYTES = 48 * 1024;

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
 * A kernel and the types of its arguments, one letter each: `p` address, `i` int32, `u` uint32, `l` int64,
 * `f` float32. Arguments are packed into memory of the kernel's own, so launching allocates nothing; the driver has
 * copied them when `launch` returns.
 */
export class Kernel {
  readonly #api: CudaApi;
  readonly #codes: Uint8Array;
  /** Arguments, 8 bytes each, as unsigned, signed and float words. */
  readonly #u32: Uint32Array;
  readonly #i32: Int32Array;
  readonly #f32: Float32Array;
  /** The `void *[]` of their addresses. */
  readonly #pointers: BigUint64Array;
  readonly #arguments: number;
  readonly #config: LaunchConfig | undefined;
  #allowedSharedBytes = DEFAULT_SHARED_BYTES;

  constructor(
    readonly fn: KernelFunction,
    readonly signature: string,
    options: KernelOptions = {},
  ) {
    invariant(/^[piulf]*$/.test(signature), `${fn.name}: unknown letter in signature "${signature}"`);
    this.#api = fn.api;
    this.#codes = Uint8Array.from(signature, (letter) => letter.charCodeAt(0));
    // Room for one at least, so that a kernel without arguments has addresses too.
    const count = Math.max(1, signature.length);
    const memory = new ArrayBuffer(count * 8);
    this.#u32 = new Uint32Array(memory);
    this.#i32 = new Int32Array(memory);
    this.#f32 = new Float32Array(memory);
    this.#pointers = new BigUint64Array(new ArrayBuffer(count * 8));
    for (let i = 0; i < count; i++) this.#pointers[i] = BigInt(ptr(this.#u32, i * 8));
    this.#arguments = ptr(this.#pointers);
    this.#config = options.dependentLaunch ? new LaunchConfig() : undefined;
  }

  /**
   * Enqueues the kernel.
   *
   * @param gridX Blocks, in x, y and z.
   * @param block Threads a block.
   * @param sharedBytes Dynamic shared memory a block; above 48 KiB it is allowed first.
   * @param args One value a letter of the signature.
   */
  launch(
    stream: number,
    gridX: number,
    gridY: number,
    gridZ: number,
    block: number,
    sharedBytes: number,
    ...args: number[]
  ): void {
    if (args.length !== this.#codes.length) {
      throw new InvariantError(`${this.fn.name} takes (${this.signature}), got ${args.length} arguments`);
    }
    for (let i = 0; i < args.length; i++) this.#pack(i, args[i]!);
    if (sharedBytes > this.#allowedSharedBytes) {
      this.fn.allowSharedMemory(sharedBytes);
      this.#allowedSharedBytes = sharedBytes;
    }
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

  #pack(i: number, value: number): void {
    switch (this.#codes[i]) {
      case 0x70: // p
        if (!(value >= 0)) this.#refuse(i, value);
        this.#u32[2 * i] = value;
        this.#u32[2 * i + 1] = value / 0x1_0000_0000;
        break;
      case 0x69: // i
        if ((value | 0) !== value) this.#refuse(i, value);
        this.#i32[2 * i] = value;
        break;
      case 0x75: // u
        if (value >>> 0 !== value) this.#refuse(i, value);
        this.#u32[2 * i] = value;
        break;
      case 0x6c: // l
        if (!Number.isSafeInteger(value)) this.#refuse(i, value);
        this.#u32[2 * i] = value;
        this.#i32[2 * i + 1] = Math.floor(value / 0x1_0000_0000);
        break;
      default:
        this.#f32[2 * i] = value;
    }
  }

  #refuse(i: number, value: number): never {
    throw new InvariantError(`${this.fn.name}: ${value} as argument ${i} of (${this.signature})`);
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
