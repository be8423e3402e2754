import { ptr } from "bun:ffi";
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import * as layout from "../../../../kernels-wasm/layout.ts";
import {
  compileKernels,
  MAX_PLACE_BYTES,
  Place,
  type PlacedBuffer,
} from "../../../../src/backend/simd/place.ts";
import { DeviceError, InvariantError } from "../../../../src/base/errors.ts";
import { Random } from "../../../contract/random.ts";

setDefaultTimeout(300_000);

const MEGABYTE = 2 ** 20;

function place(megabytes: number): Place {
  return new Place(compileKernels(), megabytes * MEGABYTE, 1);
}

test("buffers never overlap, lie beyond the task's words, and are given again once they are free", () => {
  const memory = place(16);
  const random = new Random(7);
  const held: PlacedBuffer[] = [];
  for (let i = 0; i < 2000; i++) {
    if (held.length > 0 && random.int(2) === 0) held.splice(random.int(held.length), 1)[0]!.dispose();
    else {
      const buffer = memory.take(1 + random.int(100_000), 0);
      if (buffer !== undefined) held.push(buffer);
    }
    const sorted = held.toSorted((a, b) => a.address - b.address);
    for (const [j, { address, byteLength }] of sorted.entries()) {
      expect(address % 64).toBe(0);
      expect(address).toBeGreaterThanOrEqual(layout.FIRST_FREE);
      expect(address + byteLength).toBeLessThanOrEqual(sorted[j + 1]?.address ?? memory.bytes.byteLength);
    }
  }
  for (const buffer of held) buffer.dispose();
  // All of it is one piece again.
  const whole = memory.take(16 * MEGABYTE - layout.FIRST_FREE - layout.SCRATCH_BYTES, 0);
  expect(whole).toBeDefined();
});

test("what would leave less than is spared is refused, and leaves the place as it was", () => {
  const memory = place(8);
  expect(memory.take(7 * MEGABYTE, MEGABYTE)).toBeUndefined();
  expect(memory.take(6 * MEGABYTE, MEGABYTE)).toBeDefined();
  expect(memory.take(MEGABYTE, MEGABYTE)).toBeUndefined();
  expect(memory.take(MEGABYTE, 0)).toBeDefined();
});

test("disposal is safe twice, and memory that is gone is not read", () => {
  const memory = place(4);
  const [first, second] = [memory.take(1000, 0)!, memory.take(1000, 0)!];
  first.dispose();
  first.dispose();
  expect(() => first.host).toThrow(InvariantError);
  const [third, fourth] = [memory.take(1000, 0)!, memory.take(1000, 0)!];
  expect(new Set([second, third, fourth].map(({ address }) => address)).size).toBe(3);
});

test("scratch memory that could not grow is not given again", () => {
  const memory = place(8);
  memory.scratch("x", MEGABYTE);
  const rest = memory.take(4 * MEGABYTE, 0)!;
  expect(() => memory.scratch("x", 4 * MEGABYTE)).toThrow(DeviceError);
  const taken = memory.take(MEGABYTE, 0)!;
  const again = memory.scratch("x", MEGABYTE);
  for (const { address, byteLength } of [rest, taken])
    expect(again + MEGABYTE <= address || address + byteLength <= again).toBe(true);
});

test("where the last byte of a place ends is an address, too", () => {
  const memory = new Place(compileKernels(), MAX_PLACE_BYTES, 1);
  const all = memory.take(MAX_PLACE_BYTES - layout.FIRST_FREE - layout.SCRATCH_BYTES, 0)!;
  expect((all.address + all.byteLength) >>> 0).toBeGreaterThan(all.address);
  expect(memory.take(1, 0)).toBeUndefined();
});

test("addresses that the system does not give are an error of the device", () => {
  expect(() => new Place(compileKernels(), 2 ** 40, 1)).toThrow(DeviceError);
});

describe.if(existsSync("/sys/kernel/mm/transparent_hugepage"))("pages", () => {
  /** The flags of the page in the middle of memory at an address: hg where huge ones are asked for, nh where small ones. */
  function flagsAt({ memory }: Place, address: number, byteLength: number): readonly string[] {
    const middle = ptr(new Uint8Array(memory.buffer)) + address + byteLength / 2;
    for (const map of readFileSync("/proc/self/smaps", "utf8").split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)) {
      const [start, end] = map
        .match(/^([0-9a-f]+)-([0-9a-f]+)/)!
        .slice(1)
        .map((text) => parseInt(text, 16));
      if (start! <= middle && middle < end!)
        return /^VmFlags:(.*)$/m
          .exec(map)![1]!
          .split(" ")
          .filter((flag) => flag === "hg" || flag === "nh");
    }
    throw new Error("no such memory");
  }

  test("are asked to be huge", () => {
    const own = place(8);
    const { address, byteLength } = own.take(2 * MEGABYTE, 0)!;
    expect(flagsAt(own, address, byteLength)).toEqual(["hg"]);
  });

  test("of a pool are small until it holds enough, or is somebody else's memory", () => {
    const own = place(64);
    const [pool, other] = [own.takePool(16 * MEGABYTE, 0)!, own.takePool(16 * MEGABYTE, 0)!];
    const { address, byteLength } = pool;
    const flags = () => flagsAt(own, address, byteLength);
    expect(flags()).toEqual(["nh"]);
    pool.holds(4 * MEGABYTE - 1);
    expect(flags()).toEqual(["nh"]);
    pool.holds(4 * MEGABYTE);
    expect(flags()).toEqual(["hg"]);
    expect(flagsAt(own, other.address, other.byteLength)).toEqual(["nh"]);
    other.dispose();
    expect(flagsAt(own, other.address, other.byteLength)).toEqual(["hg"]);
    expect(own.take(16 * MEGABYTE, 0)!.address).toBe(other.address);
    expect(() => other.host).toThrow(InvariantError);
  });
});
