import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { Kernel } from "../../../../src/backend/cuda/kernel.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { Graph } from "../../../../src/cuda/graph.ts";
import { Module } from "../../../../src/cuda/module.ts";
import { Stream } from "../../../../src/cuda/stream.ts";
import { FakeCuda } from "../../cuda/fake-cuda.ts";

let fake: FakeCuda;
let context: Context;
let stream: Stream;

beforeEach(() => {
  fake = new FakeCuda();
  context = Context.retain(fake.api, Device.open(fake.api, 0));
  stream = Stream.create(context);
});

afterEach(() => {
  context.dispose();
  expect(fake.violations).toEqual([]);
});

function kernel(signature: string, options = {}): Kernel {
  fake.kernels.set("k", signature.length);
  return new Kernel(Module.load(context, Uint8Array.of(1), "k.cu").function("k"), signature, options);
}

/** A view of argument `i` of the last launch. */
function argument(i: number): DataView {
  const bytes = fake.launches.at(-1)!.args[i]!;
  return new DataView(bytes.buffer, bytes.byteOffset, 8);
}

describe("arguments", () => {
  test("are packed as C lays them out", () => {
    const address = 0x7f12_3456_789a;
    kernel("piulfl").launch(
      stream.value,
      3,
      2,
      1,
      128,
      0,
      address,
      -5,
      0xffff_fff0,
      -(2 ** 40) - 3,
      1.5,
      2 ** 52 + 1,
    );
    expect(argument(0).getBigUint64(0, true)).toBe(BigInt(address));
    expect(argument(1).getInt32(0, true)).toBe(-5);
    expect(argument(2).getUint32(0, true)).toBe(0xffff_fff0);
    expect(argument(3).getBigInt64(0, true)).toBe(-(2n ** 40n) - 3n);
    expect(argument(4).getFloat32(0, true)).toBe(1.5);
    expect(argument(5).getBigInt64(0, true)).toBe(2n ** 52n + 1n);
  });

  test("of one launch leave no trace in the next", () => {
    const k = kernel("pl");
    k.launch(stream.value, 1, 1, 1, 32, 0, 0xffff_ffff_ffff, -1);
    k.launch(stream.value, 1, 1, 1, 32, 0, 0, 1);
    expect(argument(0).getBigUint64(0, true)).toBe(0n);
    expect(argument(1).getBigInt64(0, true)).toBe(1n);
  });

  test("are counted", () => {
    const k = kernel("pi");
    expect(() => k.launch(stream.value, 1, 1, 1, 32, 0, 1)).toThrow("takes (pi), got 1 arguments");
    expect(() => k.launch(stream.value, 1, 1, 1, 32, 0, 1, 2, 3)).toThrow(InvariantError);
  });

  test.each([
    ["p", -1],
    ["p", Number.NaN],
    ["p", undefined as unknown as number],
    ["i", 2 ** 31],
    ["i", 0.5],
    ["u", -1],
    ["u", 2 ** 32],
    ["l", 2 ** 53],
    ["l", 0.5],
  ])("%s does not take %p", (signature, value) => {
    expect(() => kernel(signature).launch(stream.value, 1, 1, 1, 32, 0, value)).toThrow(InvariantError);
    expect(fake.launches).toEqual([]);
  });

  test("an unknown letter is refused when the kernel is made", () => {
    expect(() => kernel("px")).toThrow('unknown letter in signature "px"');
  });
});

test("the shape of the launch arrives, with and without dependent launch", () => {
  for (const dependentLaunch of [false, true]) {
    kernel("f", { dependentLaunch }).launch(stream.value, 7, 5, 3, 256, 1024, -0.25);
    expect(fake.launches.at(-1)).toMatchObject({
      entry: "k",
      grid: [7, 5, 3],
      block: [256, 1, 1],
      sharedBytes: 1024,
      stream: stream.value,
      dependent: dependentLaunch,
    });
    expect(argument(0).getFloat32(0, true)).toBe(-0.25);
  }
});

test("shared memory above 48 KiB is allowed once per new maximum", () => {
  const k = kernel("");
  for (const bytes of [49152, 65536, 65536, 50000, 100000]) k.launch(stream.value, 1, 1, 1, 32, bytes);
  expect(fake.calls.filter((call) => call === "cuFuncSetAttribute")).toHaveLength(2);
  expect(fake.launches.map(({ sharedBytes }) => sharedBytes)).toEqual([49152, 65536, 65536, 50000, 100000]);
});

test("a refused launch names the kernel and its shape", () => {
  expect(() => kernel("").launch(stream.value, 4, 1, 1, 2048, 0)).toThrow(
    "cuLaunchKernel failed for k, grid [4, 1, 1], block 2048, 0 bytes shared: FAKE_STATUS_701",
  );
});

test("a captured launch keeps the arguments it was recorded with", () => {
  const k = kernel("i");
  const exec = Graph.capture(stream, () => k.launch(stream.value, 1, 1, 1, 32, 0, 11)).instantiate();
  k.launch(stream.value, 1, 1, 1, 32, 0, 22);
  exec.launch(stream);
  expect(argument(0).getInt32(0, true)).toBe(11);
});
