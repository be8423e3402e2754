import { ptr } from "bun:ffi";
import { expect } from "bun:test";
import type { Backend, BulkUpload, UploadBuffer } from "../../../src/backend/backend.ts";
import { type DeviceBuffer, Tensor } from "../../../src/backend/tensor.ts";
import { type DType, dtypeSize } from "../../../src/base/dtype.ts";

const GUARD_BYTES = 64;
const GUARD = 0xa5;

/** Memory on the host, with guards around it; keeps count of what is alive and of the largest upload. */
export class FakeBackend {
  live = 0;
  allocations = 0;
  largestUpload = 0;
  readonly #hosts: ArrayBuffer[] = [];

  get backend(): Backend {
    return this as unknown as Backend;
  }

  empty(dtype: DType, shape: readonly number[]): Tensor {
    const byteLength = shape.reduce((product, extent) => product * extent, dtypeSize(dtype));
    this.live++;
    this.allocations++;
    const host = guarded(byteLength);
    this.#hosts.push(host);
    const buffer: DeviceBuffer = { byteLength, address: 0, host, dispose: () => this.live-- };
    return new Tensor(buffer, dtype, shape);
  }

  upload(target: Tensor, data: ArrayBufferView): void {
    expect(data.byteLength).toBe(target.byteLength);
    this.largestUpload = Math.max(this.largestUpload, data.byteLength);
    bytesOf(target).set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  fill(target: Tensor, byte: number): void {
    bytesOf(target).fill(byte);
  }

  gatherRows(out: Tensor, x: Tensor, rows: Tensor): void {
    const [from, to, { buffer, byteOffset, size }] = [bytesOf(x), bytesOf(out), rows];
    const rowBytes = x.byteLength / x.dim(0);
    for (const [i, row] of new Int32Array(buffer.host!, GUARD_BYTES + byteOffset, size).entries())
      to.set(from.subarray(row * rowBytes, (row + 1) * rowBytes), i * rowBytes);
  }

  /** Whether nothing was written outside of any tensor. */
  get guardsHold(): boolean {
    return this.#hosts.every(guardsHold);
  }
}

/** Bulk uploads whose copies happen at the last moment allowed: when their buffer is waited for, or at the end. */
export class FakeBulkBackend extends FakeBackend {
  /** Tensors in the order in which they were committed. */
  readonly committed: Tensor[] = [];
  /** Of each buffer committed to, once per commit. */
  readonly buffersUsed: number[] = [];
  bulkUploads = 0;
  liveBulkUploads = 0;
  /** Called before each commit; may throw in its place. */
  onCommit: (count: number) => void = () => {};
  readonly #buffers: FakeUploadBuffer[];

  constructor(
    readonly bufferCount: number,
    readonly bufferBytes: number,
  ) {
    super();
    this.#buffers = Array.from({ length: bufferCount }, (_, i) => new FakeUploadBuffer(this, i));
  }

  override upload(): void {
    throw new Error("upload beside a bulk upload");
  }

  bulkUpload(): BulkUpload {
    this.bulkUploads++;
    this.liveBulkUploads++;
    const dispose = () => {
      for (const buffer of this.#buffers) buffer.wait();
      this.liveBulkUploads--;
    };
    return { buffers: this.#buffers, dispose };
  }

  override get guardsHold(): boolean {
    return super.guardsHold && this.#buffers.every((buffer) => guardsHold(buffer.host));
  }
}

class FakeUploadBuffer implements UploadBuffer {
  readonly host: ArrayBuffer;
  readonly address: number;
  readonly byteLength: number;
  #target: Tensor | undefined;

  constructor(
    private readonly owner: FakeBulkBackend,
    private readonly index: number,
  ) {
    this.byteLength = owner.bufferBytes;
    this.host = guarded(this.byteLength);
    this.address = ptr(new Uint8Array(this.host)) + GUARD_BYTES;
  }

  wait(): void {
    if (this.#target !== undefined)
      bytesOf(this.#target).set(new Uint8Array(this.host, GUARD_BYTES, this.#target.byteLength));
    this.#target = undefined;
  }

  commit(target: Tensor): void {
    expect(this.#target).toBeUndefined();
    expect(target.byteLength).toBeLessThanOrEqual(this.byteLength);
    this.owner.onCommit(this.owner.committed.length);
    this.owner.committed.push(target);
    this.owner.buffersUsed.push(this.index);
    this.#target = target;
  }
}

/** A tensor's bytes in a `FakeBackend`. */
export function bytesOf(tensor: Tensor): Uint8Array {
  return new Uint8Array(tensor.buffer.host!, GUARD_BYTES + tensor.byteOffset, tensor.byteLength);
}

function guarded(byteLength: number): ArrayBuffer {
  const host = new ArrayBuffer(byteLength + 2 * GUARD_BYTES);
  new Uint8Array(host).fill(GUARD);
  new Uint8Array(host, GUARD_BYTES, byteLength).fill(0xff);
  return host;
}

function guardsHold(host: ArrayBuffer): boolean {
  const bytes = new Uint8Array(host);
  const guards = [...bytes.subarray(0, GUARD_BYTES), ...bytes.subarray(-GUARD_BYTES)];
  return guards.every((byte) => byte === GUARD);
}
