import { invariant } from "../../base/errors.ts";
import type { Context } from "../../cuda/context.ts";
import type { PinnedMemory } from "../../cuda/memory.ts";
import { Event, type Stream } from "../../cuda/stream.ts";
import type { BulkUpload, UploadSlot } from "../backend.ts";
import type { Tensor } from "../tensor.ts";

/** Copies of 2 MiB run at the bus's full speed, and a ring has enough of them to keep a dozen readers busy. */
const SLOT_BYTES = 2 * 2 ** 20;

/** Page-locked memory cut into slots, which are copied on one stream. */
export class CudaBulkUpload implements BulkUpload {
  readonly slots: readonly PinnedSlot[];
  readonly #stream: Stream;
  readonly #release: () => void;

  /** @param release Called once, when nothing reads from the memory any more. */
  constructor(context: Context, stream: Stream, memory: PinnedMemory, release: () => void) {
    this.#stream = stream;
    this.#release = release;
    this.slots = Array.from(
      { length: Math.floor(memory.byteLength / SLOT_BYTES) },
      (_, i) => new PinnedSlot(stream, memory.value + i * SLOT_BYTES, Event.create(context)),
    );
  }

  dispose(): void {
    if (this.slots.every((slot) => slot.copied.isDisposed)) return;
    try {
      this.#stream.synchronize();
    } finally {
      for (const slot of this.slots) slot.copied.dispose();
      this.#release();
    }
  }
}

class PinnedSlot implements UploadSlot {
  readonly byteLength = SLOT_BYTES;

  constructor(
    private readonly stream: Stream,
    readonly address: number,
    readonly copied: Event,
  ) {}

  wait(): void {
    this.copied.synchronize();
  }

  commit(target: Tensor): void {
    invariant(target.byteLength <= SLOT_BYTES, `upload of ${target} from a slot of ${SLOT_BYTES} bytes`);
    this.stream.upload(target.address, this.address, target.byteLength);
    this.copied.record(this.stream);
  }
}
