import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { Staging } from "../../../../src/backend/cuda/staging.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { CudaOutOfMemoryError } from "../../../../src/cuda/errors.ts";
import { DeviceMemory } from "../../../../src/cuda/memory.ts";
import { Stream } from "../../../../src/cuda/stream.ts";
import { FakeCuda } from "../../cuda/fake-cuda.ts";

setDefaultTimeout(300_000);

const SEGMENT = 8 * 2 ** 20;
const READBACK_BYTES = 2 ** 20;

let fake: FakeCuda;
let context: Context;
let stream: Stream;
let staging: Staging;

beforeEach(() => {
  fake = new FakeCuda([{ name: "Fake GPU", computeCapability: [9, 0], memory: 2 ** 28 }]);
  context = Context.retain(fake.api, Device.open(fake.api, 0));
  stream = Stream.create(context);
  staging = new Staging(context, stream);
  fake.streams.lazy = true;
});

afterEach(() => {
  context.dispose();
  expect([...fake.live.values(), ...fake.violations]).toEqual([]);
});

/** Bytes that differ from place to place and from upload to upload. */
function pattern(length: number, seed: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2654435761) ^ Math.imul(seed, 40503);
  return new Uint8Array(words.buffer, 0, length);
}

const same = (a: Uint8Array, b: Uint8Array) => Buffer.from(a.buffer, a.byteOffset, a.length).equals(b);

describe("uploads arrive whole, however late the copies run", () => {
  test.each([
    ["many small ones, the ring several times round", Array.from({ length: 90 }, (_, i) => 2 ** 19 + 7 * i)],
    ["one larger than the ring", [5 * SEGMENT + 3]],
    ["segments to the byte", [SEGMENT, SEGMENT, 1, SEGMENT - 16, 15, SEGMENT, SEGMENT, SEGMENT]],
    ["sizes around the alignment", [1, 15, 16, 17, 0, 31, SEGMENT - 1, 33]],
  ])("%s", (_name, lengths) => {
    const uploads = lengths.map((length, seed) => {
      const memory = DeviceMemory.allocate(context, Math.max(1, length));
      const bytes = pattern(length, seed);
      staging.upload(memory.value, bytes);
      const expected = bytes.slice();
      bytes.fill(0xee); // The caller may reuse it on return.
      return { memory, expected };
    });
    stream.synchronize();
    for (const { memory, expected } of uploads) {
      expect(same(fake.bytesOf(memory.value).subarray(0, expected.length), expected)).toBe(true);
    }
  });

  test("a part of a larger buffer is taken from where it starts", () => {
    const memory = DeviceMemory.allocate(context, 8);
    staging.upload(memory.value, Int32Array.of(1, 2, 3, 4).subarray(1, 3));
    stream.synchronize();
    expect([...fake.bytesOf(memory.value)]).toEqual([2, 0, 0, 0, 3, 0, 0, 0]);
  });

  test("the host waits for no copy until the ring comes round", () => {
    const memory = DeviceMemory.allocate(context, SEGMENT);
    const bytes = pattern(SEGMENT, 1);
    for (let i = 0; i < 4; i++) staging.upload(memory.value, bytes);
    fake.bytesOf(memory.value).fill(0);
    expect(fake.bytesOf(memory.value).every((byte) => byte === 0)).toBe(true);
    staging.upload(memory.value, bytes);
    expect(same(fake.bytesOf(memory.value), bytes)).toBe(true);
  });
});

describe("fences", () => {
  test("wait for what was enqueued before them, and for nothing after", () => {
    const memory = DeviceMemory.allocate(context, 4);
    const value = () => fake.bytesOf(memory.value)[0];
    stream.fill(memory.value, 1, 4);
    const first = staging.fence();
    stream.fill(memory.value, 2, 4);
    const second = staging.fence();
    stream.fill(memory.value, 3, 4);
    first.wait();
    expect(value()).toBe(1);
    second.wait();
    expect(value()).toBe(2);
  });

  test("that were waited for are used again, and none else", () => {
    const before = fake.count("cuEventCreate");
    for (let i = 0; i < 10; i++) {
      const pair = [staging.fence(), staging.fence()];
      for (const fence of pair) fence.wait();
    }
    expect(fake.count("cuEventCreate")).toBe(before + 2);
    fake.fail("cuEventSynchronize", 700);
    expect(() => staging.fence().wait()).toThrow("cuEventSynchronize");
  });
});

describe("readbacks", () => {
  test("keep what was there when they were asked for, whatever is written after", () => {
    const memory = DeviceMemory.allocate(context, 64);
    const readbacks = Array.from({ length: 50 }, (_, i) => {
      stream.fill(memory.value, i, 64);
      return staging.readback(memory.value, 1 + i);
    });
    stream.fill(memory.value, 0xff, 64);
    for (const [i, readback] of [...readbacks.entries()].reverse()) {
      expect([...new Set(readback.wait())]).toEqual([i]);
    }
    expect(fake.count("cuMemHostAlloc")).toBe(1 + 50);
  });

  test("reuse the memory of those that were read, and hand out copies", () => {
    const memory = DeviceMemory.allocate(context, 16);
    const kept: Uint8Array[] = [];
    for (let i = 0; i < 20; i++) {
      stream.fill(memory.value, i, 16);
      const pair = [staging.readback(memory.value, 16), staging.readback(memory.value + 8, 8)];
      kept.push(...pair.map((readback) => readback.wait()));
    }
    expect(fake.count("cuMemHostAlloc")).toBe(1 + 2);
    expect(kept.map((bytes) => [...new Set(bytes)])).toEqual(kept.map((_, i) => [Math.floor(i / 2)]));
  });

  test.each([0, 1, READBACK_BYTES, READBACK_BYTES + 1, 3 * READBACK_BYTES + 5])(
    "of %d bytes are whole",
    (length) => {
      const memory = DeviceMemory.allocate(context, Math.max(1, length));
      const bytes = pattern(length, 3);
      staging.upload(memory.value, bytes);
      expect(same(staging.readback(memory.value, length).wait(), bytes)).toBe(true);
    },
  );

  test("for which there is no pinned memory fail, and later ones work", () => {
    const memory = DeviceMemory.allocate(context, 16);
    fake.fail("cuMemHostAlloc", 2);
    expect(() => staging.readback(memory.value, 16)).toThrow(CudaOutOfMemoryError);
    stream.fill(memory.value, 7, 16);
    expect([...staging.readback(memory.value, 2).wait()]).toEqual([7, 7]);
  });

  test("whose copy is refused leave the pinned memory to the next", () => {
    const memory = DeviceMemory.allocate(context, 16);
    for (const call of ["cuMemcpyDtoHAsync_v2", "cuEventRecord"] as const) {
      fake.fail(call, 1);
      expect(() => staging.readback(memory.value, 16)).toThrow(call);
    }
    staging.readback(memory.value, 16).wait();
    expect(fake.count("cuMemHostAlloc")).toBe(1 + 1);
  });

  test("outstanding at the end are freed, and cannot be waited for", () => {
    const memory = DeviceMemory.allocate(context, 16);
    const readback = staging.readback(memory.value, 16);
    context.dispose();
    expect(() => readback.wait()).toThrow(InvariantError);
  });
});
