import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { closeSync, openSync, writeFileSync } from "node:fs";
import type { BulkUpload } from "../../../../src/backend/backend.ts";
import { CudaBuffer } from "../../../../src/backend/cuda/device-buffer.ts";
import { Staging } from "../../../../src/backend/cuda/staging.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { CudaError } from "../../../../src/cuda/errors.ts";
import { viewMemory } from "../../../../src/cuda/ffi.ts";
import { Stream } from "../../../../src/cuda/stream.ts";
import { bulkLoad } from "../../../../src/loader/bulk-load.ts";
import { temporaryFolder } from "../../../support.ts";
import { FakeCuda } from "../../cuda/fake-cuda.ts";

setDefaultTimeout(300_000);

const BUFFER_BYTES = 2 * 2 ** 20;
const BUFFERS = 16;

let fake: FakeCuda;
let context: Context;
let staging: Staging;

beforeEach(() => {
  fake = new FakeCuda([{ name: "Fake GPU", computeCapability: [9, 0], memory: 2 ** 28 }]);
  context = Context.retain(fake.api, Device.open(fake.api, 0));
  staging = new Staging(context, Stream.create(context));
  fake.streams.lazy = true;
});

afterEach(() => {
  context.dispose();
  expect([...fake.live.values(), ...fake.violations]).toEqual([]);
});

function tensor(byteLength: number): Tensor {
  return new Tensor(new CudaBuffer(context, byteLength), "uint32", [byteLength / 4]);
}

function fillBuffer(upload: BulkUpload, i: number, byte: number): void {
  const { address, byteLength } = upload.buffers[i]!;
  new Uint8Array(viewMemory(address, byteLength)).fill(byte);
}

const deviceBytes = (target: Tensor) => fake.bytesOf(target.buffer.address);

describe("CudaBulkUpload", () => {
  test("lends the staging ring in buffers, which copy independently and wait for their own copy", () => {
    const pinned = fake.alive("pinned memory").length;
    const upload = staging.bulkUpload();
    expect(fake.alive("pinned memory")).toHaveLength(pinned);
    expect(upload.buffers.map((buffer) => buffer.byteLength)).toEqual(new Array(BUFFERS).fill(BUFFER_BYTES));
    const [a, b] = [tensor(12), tensor(BUFFER_BYTES)];
    deviceBytes(a).fill(0);
    deviceBytes(a).fill(0);
    fillBuffer(upload, 3, 1);
    upload.buffers[3]!.commit(a.rows(1, 3));
    fillBuffer(upload, 15, 2);
    upload.buffers[15]!.commit(b);
    upload.buffers[0]!.wait(); // Never committed: nothing to wait for.
    expect(deviceBytes(a)[4]).toBe(0);
    upload.buffers[3]!.wait();
    expect([...deviceBytes(a)]).toEqual([0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]);
    fillBuffer(upload, 3, 3);
    upload.buffers[3]!.commit(a.rows(0, 1));
    upload.dispose();
    expect([...deviceBytes(a).subarray(0, 5)]).toEqual([3, 3, 3, 3, 1]);
    expect(deviceBytes(b).every((byte) => byte === 2)).toBe(true);
  });

  test("the ring has one user at a time and serves uploads again afterwards", () => {
    const target = tensor(8);
    const data = Uint32Array.of(5, 6);
    staging.upload(target.address, data);
    const upload = staging.bulkUpload();
    expect(() => staging.upload(target.address, data)).toThrow(InvariantError);
    expect(() => staging.bulkUpload()).toThrow(InvariantError);
    fillBuffer(upload, 0, 9); // What was uploaded before has left the ring.
    const events = fake.alive("event").length;
    upload.dispose();
    upload.dispose();
    expect(fake.alive("event")).toHaveLength(events - BUFFERS);
    expect([...deviceBytes(target)]).toEqual([5, 0, 0, 0, 6, 0, 0, 0]);
    staging.upload(target.address, data.fill(7));
    staging.bulkUpload().dispose();
    expect([...deviceBytes(target)]).toEqual([7, 0, 0, 0, 7, 0, 0, 0]);
  });

  test("a copy that fails is a CudaError, and the ring is free again", () => {
    const upload = staging.bulkUpload();
    expect(() => upload.buffers[0]!.commit(tensor(BUFFER_BYTES + 4))).toThrow(InvariantError);
    fake.fail("cuMemcpyHtoDAsync_v2", 1);
    expect(() => upload.buffers[0]!.commit(tensor(8))).toThrow(CudaError);
    fake.fail("cuStreamSynchronize", 1);
    expect(() => upload.dispose()).toThrow(CudaError);
    staging.bulkUpload().dispose();
  });

  test("readers on other threads fill it several times round", async () => {
    using folder = temporaryFolder();
    const bytes = new Uint8Array(2.5 * BUFFERS * BUFFER_BYTES);
    const words = new Uint32Array(bytes.buffer);
    for (let i = 0; i < words.length; i++) words[i] = Math.imul(i, 2654435761);
    writeFileSync(folder.file("data"), bytes);
    const path = folder.file("data");
    const fd = openSync(path, "r");
    const target = tensor(bytes.length);
    const chunks = function* () {
      const common = { name: "data", path, fd, dtype: "float32", targetDtype: "float32" } as const;
      const columns = { rowBytes: 4, columnBegin: 0, columnEnd: 4 };
      for (let begin = 0; begin < bytes.length; begin += BUFFER_BYTES) {
        const rows = target.rows(begin / 4, (begin + BUFFER_BYTES) / 4);
        yield { read: { ...common, ...columns, begin, end: begin + BUFFER_BYTES }, target: rows };
      }
    };
    const upload = staging.bulkUpload();
    await bulkLoad(chunks(), upload, 3, () => {});
    upload.dispose();
    closeSync(fd);
    expect(Buffer.compare(deviceBytes(target), bytes)).toBe(0);
  });
});
