import { invariant } from "../../base/errors.ts";
import type { Context } from "../../cuda/context.ts";
import { PinnedMemory } from "../../cuda/memory.ts";
import { Event, type Stream } from "../../cuda/stream.ts";
import type { BulkUpload, Fence, Readback } from "../backend.ts";
import { CudaBulkUpload } from "./bulk-upload.ts";

const UPLOAD_SEGMENTS = 4;
const UPLOAD_SEGMENT_BYTES = 8 * 2 ** 20;
const READBACK_BYTES = 2 ** 20;
const ALIGNMENT = 16;

/**
 * Traffic between host and device on one stream: marks to wait for, and copies through page-locked memory, uploads through a
 * ring of segments, each waited for only when it comes round again, downloads through buffers that are free once they were
 * read.
 */
export class Staging {
  readonly #ring: PinnedMemory;
  readonly #bytes: Uint8Array;
  readonly #segmentFree: readonly Event[];
  readonly #freeReadbacks: ReadbackBuffer[] = [];
  readonly #freeEvents: Event[] = [];
  #segment = 0;
  #offset = 0;
  #bulk: CudaBulkUpload | undefined;

  /** @param wait for what was marked by an event; by default this thread waits for nothing else. */
  constructor(
    private readonly context: Context,
    private readonly stream: Stream,
    private readonly wait: (event: Event) => void = (event) => event.synchronize(),
  ) {
    this.#ring = PinnedMemory.allocate(context, UPLOAD_SEGMENTS * UPLOAD_SEGMENT_BYTES);
    this.#bytes = new Uint8Array(this.#ring.bytes);
    this.#segmentFree = Array.from({ length: UPLOAD_SEGMENTS }, () => Event.create(context));
  }

  /** Enqueues a copy to a device address; `data` may be reused on return. */
  upload(target: number, data: ArrayBufferView): void {
    invariant(this.#bulk === undefined, "upload during a bulk upload");
    const source = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    for (let done = 0; done < source.length; ) {
      const length = Math.min(source.length - done, UPLOAD_SEGMENT_BYTES);
      if (this.#offset + length > UPLOAD_SEGMENT_BYTES) this.#nextSegment();
      const at = this.#segment * UPLOAD_SEGMENT_BYTES + this.#offset;
      this.#bytes.set(source.subarray(done, done + length), at);
      this.stream.upload(target + done, this.#ring.value + at, length);
      this.#offset = Math.ceil((this.#offset + length) / ALIGNMENT) * ALIGNMENT;
      done += length;
    }
  }

  /** Lends the whole ring, so that it need not be pinned twice. */
  bulkUpload(): BulkUpload {
    invariant(this.#bulk === undefined, "one bulk upload at a time");
    this.stream.synchronize();
    this.#bulk = new CudaBulkUpload(this.context, this.stream, this.#ring, () => {
      this.#bulk = undefined;
    });
    return this.#bulk;
  }

  /** Enqueues a copy to the host. Copies above 1 MiB are waited for at once. */
  readback(source: number, byteLength: number): Readback {
    if (byteLength > READBACK_BYTES) {
      const bytes = this.#download(source, byteLength);
      return { wait: () => bytes };
    }
    const buffer = this.#freeReadbacks.pop() ?? new ReadbackBuffer(this.context);
    try {
      this.stream.download(buffer.memory.value, source, byteLength);
      buffer.done.record(this.stream);
    } catch (error) {
      this.#freeReadbacks.push(buffer);
      throw error;
    }
    return {
      wait: () => {
        try {
          this.wait(buffer.done);
          return buffer.bytes.slice(0, byteLength);
        } finally {
          // After a failed wait the copy may still be under way: the buffer's next one comes after it on the stream.
          this.#freeReadbacks.push(buffer);
        }
      },
    };
  }

  /** Marks the end of what is enqueued. */
  fence(): Fence {
    const event = this.#freeEvents.pop() ?? Event.create(this.context);
    // Should this fail the event is not lost: the context owns it.
    event.record(this.stream);
    return {
      wait: () => {
        this.wait(event);
        this.#freeEvents.push(event);
      },
    };
  }

  #download(source: number, byteLength: number): Uint8Array {
    const bytes = new Uint8Array(byteLength);
    for (let done = 0; done < byteLength; done += READBACK_BYTES) {
      const length = Math.min(READBACK_BYTES, byteLength - done);
      bytes.set(this.readback(source + done, length).wait(), done);
    }
    return bytes;
  }

  #nextSegment(): void {
    this.#segmentFree[this.#segment]!.record(this.stream);
    this.#segment = (this.#segment + 1) % UPLOAD_SEGMENTS;
    this.wait(this.#segmentFree[this.#segment]!);
    this.#offset = 0;
  }
}

class ReadbackBuffer {
  readonly memory: PinnedMemory;
  readonly bytes: Uint8Array;
  readonly done: Event;

  constructor(context: Context) {
    this.memory = PinnedMemory.allocate(context, READBACK_BYTES);
    this.bytes = new Uint8Array(this.memory.bytes);
    this.done = Event.create(context);
  }
}
