import { dtypeSize } from "../../base/dtype.ts";
import { DeviceError, InvariantError, invariant } from "../../base/errors.ts";
import type { DeviceBuffer, Tensor } from "../tensor.ts";

/** Memory of the CPU backend. Reading it after `dispose()` throws `InvariantError`. */
export class HostBuffer implements DeviceBuffer {
  readonly address = 0;
  #bytes: ArrayBuffer | undefined;

  constructor(
    readonly byteLength: number,
    private readonly onDispose: (buffer: HostBuffer) => void,
  ) {
    try {
      this.#bytes = new ArrayBuffer(byteLength);
    } catch (cause) {
      throw new DeviceError(`cannot allocate ${byteLength} bytes of host memory`, { cause });
    }
  }

  get host(): ArrayBuffer {
    invariant(this.#bytes !== undefined, "host buffer used after dispose()");
    return this.#bytes;
  }

  dispose(): void {
    this.#bytes = undefined;
    this.onDispose(this);
  }
}

function bytesOf({ buffer }: Tensor): ArrayBufferLike {
  invariant(buffer.host !== undefined, "tensor of another device given to the CPU backend");
  return buffer.host;
}

/** The memory that holds a tensor of 4-byte elements. */
function wordsOf(tensor: Tensor): ArrayBufferLike {
  // Asked for each operand of each op: a message is built when it is needed.
  if (dtypeSize(tensor.dtype) !== 4) throw new InvariantError(`${tensor} read as 4-byte elements`);
  return bytesOf(tensor);
}

/** The tensor's memory as raw bytes. */
export function bytes(tensor: Tensor): Uint8Array {
  return new Uint8Array(bytesOf(tensor), tensor.address, tensor.byteLength);
}

/** The tensor's memory as float32, whatever its 4-byte dtype: slot parameters hold floats as bits. */
export function floats(tensor: Tensor): Float32Array {
  return new Float32Array(wordsOf(tensor), tensor.address, tensor.size);
}

/** The tensor's memory as int32. */
export function ints(tensor: Tensor): Int32Array {
  return new Int32Array(wordsOf(tensor), tensor.address, tensor.size);
}

/** The tensor's memory as uint32. */
export function words(tensor: Tensor): Uint32Array {
  return new Uint32Array(wordsOf(tensor), tensor.address, tensor.size);
}
