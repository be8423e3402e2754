import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { DeviceError, InvariantError } from "../../../src/base/errors.ts";
import { Context } from "../../../src/cuda/context.ts";
import { Device } from "../../../src/cuda/device.ts";
import { CudaError, CudaOutOfMemoryError, checkCuda } from "../../../src/cuda/errors.ts";
import { Graph } from "../../../src/cuda/graph.ts";
import { DeviceMemory, PinnedMemory } from "../../../src/cuda/memory.ts";
import { Module } from "../../../src/cuda/module.ts";
import { Event, Stream } from "../../../src/cuda/stream.ts";
import { FakeCuda } from "./fake-cuda.ts";

setDefaultTimeout(300_000);

let fake: FakeCuda;
let context: Context;

beforeEach(() => {
  fake = new FakeCuda();
  context = Context.retain(fake.api, Device.open(fake.api, 0));
});

afterEach(() => {
  context.dispose();
  expect([...fake.live.values()]).toEqual([]);
  expect(fake.violations).toEqual([]);
});

function thrown(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
}

describe("errors", () => {
  test("every status carries call, status, name and text", () => {
    for (let status = 1; status <= 999; status++) {
      const error = thrown(() => checkCuda(fake.api, "cuSomething", status));
      expect(error).toBeInstanceOf(CudaError);
      expect(error).toBeInstanceOf(DeviceError);
      expect(error).toMatchObject({
        call: "cuSomething",
        status,
        statusName: `FAKE_STATUS_${status}`,
        statusText: `what ${status} means`,
      });
    }
    expect(() => checkCuda(fake.api, "cuSomething", 0)).not.toThrow();
  });

  test("exactly the terminal statuses are fatal", () => {
    const fatal = Array.from({ length: 999 }, (_, i) => i + 1).filter(
      (status) => (thrown(() => checkCuda(fake.api, "f", status)) as CudaError).fatal,
    );
    expect(fatal).toEqual([214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911]);
  });

  test("a status that the driver has no name for is still reported", () => {
    fake.fail("cuGetErrorName", 1);
    fake.fail("cuGetErrorString", 1);
    const error = thrown(() => checkCuda(fake.api, "cuInit", 12345));
    expect(error).toMatchObject({ status: 12345, statusName: "CUDA_ERROR_UNKNOWN_TO_DRIVER" });
  });
});

describe("memory", () => {
  test("running out names the bytes asked for, free and in all, and leaves the context usable", () => {
    const held = DeviceMemory.allocate(context, 2 ** 23);
    const error = thrown(() => DeviceMemory.allocate(context, 2 ** 24));
    expect(error).toBeInstanceOf(CudaOutOfMemoryError);
    expect(error).toMatchObject({ requested: 2 ** 24, free: 2 ** 23, total: 2 ** 24, fatal: false });
    held.dispose();
    DeviceMemory.allocate(context, 2 ** 24).dispose();
  });

  test("another failure of an allocation is not taken for running out", () => {
    fake.fail("cuMemAlloc_v2", 700);
    const error = thrown(() => DeviceMemory.allocate(context, 16));
    expect(error).not.toBeInstanceOf(CudaOutOfMemoryError);
    expect(error).toMatchObject({ status: 700, fatal: true });
  });

  test("upload, fill and download move the bytes", () => {
    const stream = Stream.create(context);
    const memory = DeviceMemory.allocate(context, 8);
    stream.upload(memory.value + 2, Uint8Array.of(1, 2, 3, 4), 4);
    stream.fill(memory.value, 9, 2);
    const out = new Uint8Array(6);
    stream.download(out, memory.value, 6);
    stream.synchronize();
    expect([...out]).toEqual([9, 9, 1, 2, 3, 4]);
  });

  test("disposing of pinned memory empties views of it", () => {
    const pinned = PinnedMemory.allocate(context, 64);
    const view = new Uint8Array(pinned.bytes);
    view[0] = 42;
    expect(fake.bytesOf(pinned.value)[0]).toBe(42);
    pinned.dispose();
    expect(view.length).toBe(0);
    expect(pinned.bytes.byteLength).toBe(0);
  });
});

describe("disposal", () => {
  test("twice is once, and use afterwards throws", () => {
    const stream = Stream.create(context);
    stream.dispose();
    stream.dispose();
    expect(fake.calls.filter((call) => call === "cuStreamDestroy_v2")).toHaveLength(1);
    expect(() => stream.synchronize()).toThrow(InvariantError);
    expect(stream.isDisposed).toBe(true);
  });

  test("a context disposes of what it still owns, youngest first, and itself last", () => {
    Stream.create(context);
    const event = Event.create(context);
    DeviceMemory.allocate(context, 4);
    event.dispose();
    fake.calls.length = 0;
    context.dispose();
    expect(fake.calls).toEqual(["cuMemFree_v2", "cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"]);
  });

  test("a poisoned context can be disposed of", () => {
    Stream.create(context);
    DeviceMemory.allocate(context, 4);
    for (const call of ["cuMemFree_v2", "cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"] as const) {
      fake.fail(call, 700);
    }
    expect(() => context.dispose()).not.toThrow();
    fake.live.clear();
  });

  test("a failing child does not keep its siblings", () => {
    DeviceMemory.allocate(context, 4);
    Stream.create(context);
    fake.fail("cuStreamDestroy_v2", 400);
    expect(() => context.dispose()).toThrow("cuStreamDestroy_v2");
    expect([...fake.live.values()]).toEqual(["stream"]);
    fake.live.clear();
  });

  test("kernels of a disposed module throw", () => {
    fake.kernels.set("k", 0);
    const module = Module.load(context, Uint8Array.of(1), "k.cu");
    const fn = module.function("k");
    expect(fn.value).toBeGreaterThan(0);
    module.dispose();
    expect(() => fn.value).toThrow(InvariantError);
  });
});

test("a missing kernel is named with its file", () => {
  const module = Module.load(context, Uint8Array.of(1), "norm.cu (DTYPE_BF16=1)");
  expect(() => module.function("rms_norm")).toThrow("rms_norm in norm.cu (DTYPE_BF16=1)");
});

test("an event that has not happened is not done; other statuses throw", () => {
  const event = Event.create(context, { timing: true });
  fake.fail("cuEventQuery", 600);
  fake.fail("cuEventQuery", 719, 2);
  expect(event.isDone).toBe(false);
  expect(() => event.isDone).toThrow("cuEventQuery");
  expect(event.isDone).toBe(true);
  expect(event.elapsedSince(Event.create(context, { timing: true }))).toBe(1.5);
});

describe("graphs", () => {
  test("a capture records, runs nothing, and replays", () => {
    const stream = Stream.create(context);
    const memory = DeviceMemory.allocate(context, 2);
    const graph = Graph.capture(stream, () => {
      stream.fill(memory.value, 1, 1);
      stream.fill(memory.value + 1, 2, 1);
    });
    expect([...fake.bytesOf(memory.value)]).toEqual([0xa5, 0xa5]);
    const exec = graph.instantiate();
    graph.dispose();
    exec.upload(stream);
    exec.launch(stream);
    expect([...fake.bytesOf(memory.value)]).toEqual([1, 2]);
  });

  test("a capture that throws leaves no graph, and the stream usable", () => {
    const stream = Stream.create(context);
    expect(() =>
      Graph.capture(stream, () => {
        stream.synchronize();
      }),
    ).toThrow("cuStreamSynchronize");
    expect(fake.alive("graph")).toEqual([]);
    stream.synchronize();
  });

  test("an instantiation that fails leaves no exec", () => {
    const stream = Stream.create(context);
    const graph = Graph.capture(stream, () => {});
    fake.fail("cuGraphInstantiateWithFlags", 2);
    expect(() => graph.instantiate()).toThrow("cuGraphInstantiateWithFlags");
    expect(fake.alive("graph exec")).toEqual([]);
  });
});

describe("other GPUs", () => {
  test("are reached once by each; where they cannot be, that is told before it is tried", () => {
    const two = new FakeCuda([...fake.gpus, ...fake.gpus]);
    const [first, second] = [0, 1].map((n) => Context.retain(two.api, Device.open(two.api, n)));
    expect(first!.canReach(1)).toBe(true);
    first!.reach(second!.value);
    first!.reach(second!.value);
    two.linked = false;
    expect(first!.canReach(1)).toBe(false);
    expect(() => first!.reach(second!.value)).toThrow("cuCtxEnablePeerAccess failed");
    for (const each of [second, first]) each!.dispose();
    expect(two.violations).toEqual([]);
  });
});
