import type { Context } from "./context.ts";
import {
  type CudaApi,
  CudaStatus,
  EVENT_BLOCKING_SYNC,
  EVENT_DISABLE_TIMING,
  STREAM_NON_BLOCKING,
} from "./driver-symbols.ts";
import { checkCuda } from "./errors.ts";
import { type Address, OutPointer } from "./ffi.ts";
import { Handle } from "./handle.ts";

/** A queue of device work: in order within itself, independent of other streams. */
export class Stream extends Handle {
  private constructor(
    readonly context: Context,
    private readonly api: CudaApi,
    value: number,
  ) {
    super(value, context);
  }

  /** @param priority Lower runs first; the driver clamps it to its range. Default 0, the lowest. */
  static create(context: Context, priority = 0): Stream {
    const { api } = context;
    const out = new OutPointer();
    checkCuda(
      api,
      "cuStreamCreateWithPriority",
      api.cuStreamCreateWithPriority(out.array, STREAM_NON_BLOCKING, priority),
    );
    return new Stream(context, api, out.value);
  }

  /** Waits on this thread for everything enqueued. */
  synchronize(): void {
    checkCuda(this.api, "cuStreamSynchronize", this.api.cuStreamSynchronize(this.value));
  }

  /** Copies host bytes to the device. A typed array may be reused on return; pinned memory only after the copy. */
  upload(target: number, source: Address, byteLength: number): void {
    checkCuda(
      this.api,
      "cuMemcpyHtoDAsync_v2",
      this.api.cuMemcpyHtoDAsync_v2(target, source, byteLength, this.value),
    );
  }

  /** Copies device bytes to the host: they are there once the stream, or an event recorded after, has finished. */
  download(target: Address, source: number, byteLength: number): void {
    checkCuda(
      this.api,
      "cuMemcpyDtoHAsync_v2",
      this.api.cuMemcpyDtoHAsync_v2(target, source, byteLength, this.value),
    );
  }

  /** Copies between device addresses that do not overlap. */
  copy(target: number, source: number, byteLength: number): void {
    checkCuda(
      this.api,
      "cuMemcpyDtoDAsync_v2",
      this.api.cuMemcpyDtoDAsync_v2(target, source, byteLength, this.value),
    );
  }

  /** Sets `byteLength` device bytes to `byte`. */
  fill(target: number, byte: number, byteLength: number): void {
    checkCuda(this.api, "cuMemsetD8Async", this.api.cuMemsetD8Async(target, byte, byteLength, this.value));
  }

  protected override release(value: number): void {
    checkCuda(this.api, "cuStreamDestroy_v2", this.api.cuStreamDestroy_v2(value));
  }
}

/** A point in a stream's work that the host or another stream can wait for. */
export class Event extends Handle {
  private constructor(
    private readonly api: CudaApi,
    value: number,
    context: Context,
  ) {
    super(value, context);
  }

  /**
   * @param timing Keep a timestamp, for `elapsedSince`. Default false.
   * @param blocking `synchronize` sleeps instead of spinning. Default false.
   */
  static create(context: Context, options: { timing?: boolean; blocking?: boolean } = {}): Event {
    const { api } = context;
    const out = new OutPointer();
    const flags = (options.timing ? 0 : EVENT_DISABLE_TIMING) | (options.blocking ? EVENT_BLOCKING_SYNC : 0);
    checkCuda(api, "cuEventCreate", api.cuEventCreate(out.array, flags));
    return new Event(api, out.value, context);
  }

  /** Marks this point of `stream`. Recording again moves the mark. */
  record(stream: Stream): void {
    checkCuda(this.api, "cuEventRecord", this.api.cuEventRecord(this.value, stream.value));
  }

  /** Whether the work before the mark has finished. True when nothing was recorded. */
  get isDone(): boolean {
    const status = this.api.cuEventQuery(this.value);
    if (status === CudaStatus.notReady) return false;
    checkCuda(this.api, "cuEventQuery", status);
    return true;
  }

  /** Waits on this thread for the work before the mark. */
  synchronize(): void {
    checkCuda(this.api, "cuEventSynchronize", this.api.cuEventSynchronize(this.value));
  }

  /** Milliseconds between two marks; both events need `timing` and must have happened. */
  elapsedSince(start: Event): number {
    const milliseconds = new Float32Array(1);
    checkCuda(
      this.api,
      "cuEventElapsedTime",
      this.api.cuEventElapsedTime(milliseconds, start.value, this.value),
    );
    return milliseconds[0]!;
  }

  protected override release(value: number): void {
    checkCuda(this.api, "cuEventDestroy_v2", this.api.cuEventDestroy_v2(value));
  }
}
