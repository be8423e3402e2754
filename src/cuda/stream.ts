import type { Context } from "./context.ts";
import { DriverHandle } from "./driver-handle.ts";
import { CudaStatus, EVENT_DISABLE_TIMING, STREAM_NON_BLOCKING } from "./driver-symbols.ts";
import { callCuda, checkCuda } from "./errors.ts";
import { type Address, OutPointer } from "./ffi.ts";

/** A queue of device work: in order within itself, independent of other streams. */
export class Stream extends DriverHandle {
  protected readonly destroy = "cuStreamDestroy_v2";

  static create(context: Context): Stream {
    const out = new OutPointer();
    callCuda(context.api, "cuStreamCreate", [out.array, STREAM_NON_BLOCKING]);
    return new Stream(context, out.value);
  }

  /** Waits on this thread for everything enqueued. */
  synchronize(): void {
    callCuda(this.api, "cuStreamSynchronize", [this.value]);
  }

  /** Holds back all that is enqueued from now on until the work before the mark, which may be of another stream, is done. */
  waitFor(event: Event): void {
    callCuda(this.api, "cuStreamWaitEvent", [this.value, event.value, 0]);
  }

  /** Copies host bytes to the device. A typed array may be reused on return; pinned memory only after the copy. */
  upload(target: number, source: Address, byteLength: number): void {
    callCuda(this.api, "cuMemcpyHtoDAsync_v2", [target, source, byteLength, this.value]);
  }

  /** Copies bytes within the device, or to memory of another that it reaches; the two ranges must not overlap. */
  copy(target: number, source: number, byteLength: number): void {
    callCuda(this.api, "cuMemcpyDtoDAsync_v2", [target, source, byteLength, this.value]);
  }

  /** Copies device bytes to the host: they are there once the stream, or an event recorded after, has finished. */
  download(target: Address, source: number, byteLength: number): void {
    callCuda(this.api, "cuMemcpyDtoHAsync_v2", [target, source, byteLength, this.value]);
  }

  /** Sets `byteLength` device bytes to `byte`. */
  fill(target: number, byte: number, byteLength: number): void {
    callCuda(this.api, "cuMemsetD8Async", [target, byte, byteLength, this.value]);
  }
}

/** A point in a stream's work that the host can wait for. */
export class Event extends DriverHandle {
  protected readonly destroy = "cuEventDestroy_v2";

  /** @param options.timing Keep a timestamp, for `elapsedSince`. Default false. */
  static create(context: Context, { timing = false } = {}): Event {
    const out = new OutPointer();
    callCuda(context.api, "cuEventCreate", [out.array, timing ? 0 : EVENT_DISABLE_TIMING]);
    return new Event(context, out.value);
  }

  /** Marks this point of `stream`. Recording again moves the mark. */
  record(stream: Stream): void {
    callCuda(this.api, "cuEventRecord", [this.value, stream.value]);
  }

  /** True once the work before the mark has finished, and when nothing was recorded. */
  get isDone(): boolean {
    const status = this.api.cuEventQuery(this.value);
    if (status === CudaStatus.notReady) return false;
    checkCuda(this.api, "cuEventQuery", status);
    return true;
  }

  /** Waits on this thread for the work before the mark. */
  synchronize(): void {
    callCuda(this.api, "cuEventSynchronize", [this.value]);
  }

  /** Milliseconds between two marks; both events need `timing` and must have happened. */
  elapsedSince(start: Event): number {
    const milliseconds = new Float32Array(1);
    callCuda(this.api, "cuEventElapsedTime", [milliseconds, start.value, this.value]);
    return milliseconds[0]!;
  }
}
