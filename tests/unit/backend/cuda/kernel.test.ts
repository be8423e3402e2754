import { ptr } from "bun:ffi";
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Addressed } from "../../../../src/backend/cuda/argument-packer.ts";
import { Kernel } from "../../../../src/backend/cuda/kernel.ts";
import type { ParameterType } from "../../../../src/backend/cuda/kernel-signature.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { Graph } from "../../../../src/cuda/graph.ts";
import { Module } from "../../../../src/cuda/module.ts";
import { Stream } from "../../../../src/cuda/stream.ts";
import { FakeCuda } from "../../cuda/fake-cuda.ts";

setDefaultTimeout(300_000);

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

function kernel(parameters: Readonly<Record<string, ParameterType>>, options = {}): Kernel {
  const list = Object.entries(parameters).map(([name, type]) => ({ name, type }));
  fake.kernels.set("k", list.length);
  return new Kernel(Module.load(context, Uint8Array.of(1), "k.cu").function("k"), list, options);
}

/** A view of argument `i` of the last launch. */
function argument(i: number): DataView {
  const bytes = fake.launches.at(-1)!.args[i]!;
  return new DataView(bytes.buffer, bytes.byteOffset, 8);
}

describe("arguments", () => {
  test("are packed as C lays them out, in the order of the parameters", () => {
    const address = 0x7f12_3456_789a;
    const parameters = {
      a: "pointer",
      b: "int32",
      c: "uint32",
      d: "int64",
      e: "float32",
      f: "int64",
    } as const;
    kernel(parameters).launch(stream.value, 3, 2, 1, 128, 0, {
      ...{ f: 2 ** 52 + 1, e: 1.5, d: -(2 ** 40) - 3, c: 0xffff_fff0, b: -5, a: { address } },
    });
    expect(argument(0).getBigUint64(0, true)).toBe(BigInt(address));
    expect(argument(1).getInt32(0, true)).toBe(-5);
    expect(argument(2).getUint32(0, true)).toBe(0xffff_fff0);
    expect(argument(3).getBigInt64(0, true)).toBe(-(2n ** 40n) - 3n);
    expect(argument(4).getFloat32(0, true)).toBe(1.5);
    expect(argument(5).getBigInt64(0, true)).toBe(2n ** 52n + 1n);
  });

  test("of one launch leave no trace in the next", () => {
    const k = kernel({ p: "pointer", l: "int64" });
    k.launch(stream.value, 1, 1, 1, 32, 0, { p: { address: 0xffff_ffff_ffff }, l: -1 });
    k.launch(stream.value, 1, 1, 1, 32, 0, { p: null, l: 1 });
    expect(argument(0).getBigUint64(0, true)).toBe(0n);
    expect(argument(1).getBigInt64(0, true)).toBe(1n);
  });

  test("in host memory are copied from there", () => {
    const map = new BigUint64Array(new ArrayBuffer(128)).fill(7n);
    const k = kernel({ n: "int32", map: "hostValue" });
    k.launch(stream.value, 1, 1, 1, 32, 0, { n: 3, map: { hostAddress: ptr(map) } });
    expect(argument(0).getInt32(0, true)).toBe(3);
    expect(argument(1).getBigUint64(0, true)).toBe(7n);
  });

  const missing = undefined as unknown as number;
  test.each<[ParameterType, Addressed | null | number]>([
    ["pointer", { address: -1 }],
    ["pointer", { address: Number.NaN }],
    ["pointer", 4096],
    ["pointer", missing],
    ["int32", 2 ** 31],
    ["int32", 0.5],
    ["int32", missing],
    ["int32", { address: 1 }],
    ["uint32", -1],
    ["uint32", 2 ** 32],
    ["uint32", missing],
    ["int64", 2 ** 53],
    ["int64", 0.5],
    ["int64", missing],
    ["float32", missing],
    ["float32", { address: 1 }],
    ["hostValue", { address: 1 }],
    ["hostValue", missing],
  ])("%s does not take %p", (type, value) => {
    const run = () => kernel({ a: type }).launch(stream.value, 1, 1, 1, 32, 0, { a: value });
    expect(run).toThrow(InvariantError);
    expect(run).toThrow(`k: a is `);
    expect(fake.launches).toEqual([]);
  });
});

test("the shape of the launch arrives, with and without dependent launch", () => {
  for (const dependentLaunch of [false, true]) {
    kernel({ f: "float32" }, { dependentLaunch }).launch(stream.value, 7, 5, 3, 256, 1024, { f: -0.25 });
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
  const k = kernel({});
  for (const bytes of [49152, 65536, 65536, 50000, 100000]) k.launch(stream.value, 1, 1, 1, 32, bytes, {});
  expect(fake.calls.filter((call) => call === "cuFuncSetAttribute")).toHaveLength(2);
  expect(fake.launches.map(({ sharedBytes }) => sharedBytes)).toEqual([49152, 65536, 65536, 50000, 100000]);
});

test("blocks that fit a multiprocessor together get the shared memory that they need, the rest is cache", () => {
  // Four blocks of 7 KiB and the driver's own KiB, of 228.
  kernel({}).fn.preferCache(256);
  expect(fake.sharedPercents.get("k")).toBe(15);
  kernel({}).fn.preferCache(32);
  expect(fake.sharedPercents.get("k")).toBe(100);
  expect(fake.violations).toEqual([]);
});

test("a refused launch names the kernel and its shape", () => {
  expect(() => kernel({}).launch(stream.value, 4, 1, 1, 2048, 0, {})).toThrow(
    "cuLaunchKernel failed for k, grid [4, 1, 1], block 2048, 0 bytes shared: FAKE_STATUS_701",
  );
});

test("a captured launch keeps the arguments it was recorded with", () => {
  const k = kernel({ i: "int32" });
  const exec = Graph.capture(stream, () => k.launch(stream.value, 1, 1, 1, 32, 0, { i: 11 })).instantiate();
  k.launch(stream.value, 1, 1, 1, 32, 0, { i: 22 });
  exec.launch(stream);
  expect(argument(0).getInt32(0, true)).toBe(11);
});
