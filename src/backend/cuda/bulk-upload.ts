import { InvariantError } from "../../base/errors.ts";
import type { Context } from "../../cuda/context.ts";
import type { PinnedMemory } from "../../cuda/memory.ts";
import { Event, type Stream } from "../../cuda/stream.ts";
import type { BulkUpload, UploadBuffer } from "../backend.ts";
import type { Tensor } from "../tensor.ts";

/** Copies of 2 MiB run at the bus's full speed, and a ring has enough of them to keep a dozen readers busy. */
const BUFFER_BYTES = 2 * 2 ** 20;

/** Page-locked memory cut into buffers, which are copied on one stream. */
export class CudaBulkUpload implements BulkUpload {
  readonly buffers: readonly PinnedUploadBuffer[];
  readonly #stream: Stream;
  readonly #release: () => void;

  /** @param release Called once, when nothing reads from the memory any more. */
  constructor(context: Context, stream: Stream, memory: PinnedMemory, release: () => void) {
    this.#stream = stream;
    this.#release = release;
    this.buffers = Array.from(
      { length: Math.floor(memory.byteLength / BUFFER_BYTES) },
      (_, i) => new PinnedUploadBuffer(stream, memory.value + i * BUFFER_BYTES, Event.create(context)),
    );
  }

  dispose(): void {
    if (this.buffers.every((buffer) => buffer.copied.isDisposed)) return;
    try {
      this.#stream.synchronize();
    } finally {
      for (const buffer of this.buffers) buffer.copied.dispose();
      this.#release();
    }
  }
}

class PinnedUploadBuffer implements UploadBuffer {
  readonly byteLength = BUFFER_BYTES;

  constructor(
    private readonly stream: Stream,
    readonly address: number,
    readonly copied: Event,
  ) {}

  wait(): void {
    this.copied.synchronize();
  }

  commit(target: Tensor): void {
    if (target.byteLength > BUFFER_BYTES)
      throw new InvariantError(`upload of ${target} from a buffer of ${BUFFER_BYTES} bytes`);
    this.stream.upload(target.address, this.address, target.byteLength);
    this.copied.record(this.stream);
  }
}
