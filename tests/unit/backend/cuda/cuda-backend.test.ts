import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CudaBackend } from "../../../../src/backend/cuda/cuda-backend.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { ConfigError, DeviceError, InvariantError } from "../../../../src/base/errors.ts";
import type { CudaApi } from "../../../../src/cuda/driver-symbols.ts";
import { CublasError, CudaError, CudaOutOfMemoryError } from "../../../../src/cuda/errors.ts";
import { FakeMachine } from "./fake-machine.ts";
import { plainForm } from "./kernel-units.ts";

setDefaultTimeout(300_000);

const FATAL = [214, 220, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911];
const OUT_OF_MEMORY = 2;

let machine: FakeMachine;
let backend: CudaBackend;

beforeEach(() => {
  machine = new FakeMachine();
  backend = machine.backend();
});

afterEach(() => machine[Symbol.dispose]());

function thrown(run: () => unknown): unknown {
  try {
    run();
  } catch (error) {
    return error;
  }
  return undefined;
}

/** A norm over `tokens` rows, its kernel loaded. */
function norm(tokens = 1): () => void {
  const [x, weight] = [backend.empty("bfloat16", [tokens, 64]), backend.empty("bfloat16", [64])];
  const out = backend.empty("bfloat16", [tokens, 64]);
  const run = () => backend.rmsNorm(out, x, weight, 1e-6);
  run();
  return run;
}

describe("memory", () => {
  test("is uploaded, filled, read back and downloaded", () => {
    const tensor = backend.empty("int32", [4]);
    backend.upload(tensor, Int32Array.of(1, 2, 3, 4));
    const before = backend.readback(tensor.rows(1, 3));
    backend.fill(tensor.rows(0, 2), 0xff);
    expect([...new Int32Array(backend.download(tensor).buffer)]).toEqual([-1, -1, 3, 4]);
    expect([...new Int32Array(before.wait().buffer)]).toEqual([2, 3]);
    backend.synchronize();
    expect(() => backend.upload(tensor, new Uint8Array(15))).toThrow(InvariantError);
  });

  test("of no bytes has an address of its own", () => {
    const [a, b] = [backend.empty("int32", [0]), backend.empty("int32", [0])];
    expect(a.address).not.toBe(b.address);
    backend.upload(a, new Int32Array(0));
    expect(backend.download(a)).toHaveLength(0);
  });

  test("that runs out says what was asked for and what is free, and goes on", () => {
    const { free, total } = backend.memory();
    const error = thrown(() => backend.allocate(free + 1));
    expect(error).toBeInstanceOf(CudaOutOfMemoryError);
    expect(error).toMatchObject({ requested: free + 1, free, total, code: "out_of_memory", fatal: false });
    backend.allocate(free).dispose();
    norm()();
  });
});

describe("a call that fails", () => {
  const graphed = () => {
    const graph = backend.capture(norm());
    return () => graph.launch();
  };
  const read = () => {
    const tensor = backend.empty("int32", [1]);
    return () => backend.readback(tensor).wait();
  };
  const uploaded = () => {
    const tensor = backend.empty("int32", [1]);
    return () => backend.upload(tensor, new Int32Array(1));
  };

  test.each<[keyof CudaApi, () => () => unknown]>([
    ["cuMemAlloc_v2", () => () => backend.allocate(16).dispose()],
    ["cuMemcpyHtoDAsync_v2", uploaded],
    ["cuMemcpyDtoHAsync_v2", read],
    ["cuEventSynchronize", read],
    ["cuLaunchKernelEx", () => norm()],
    ["cuGraphLaunch", graphed],
    ["cuStreamSynchronize", () => () => backend.synchronize()],
  ])("%s: every status becomes a typed error, and the next call works", (call, prepare) => {
    const run = prepare();
    for (let status = 1; status <= 999; status++) {
      machine.cuda.fail(call, status);
      const error = thrown(run);
      const outOfMemory = call === "cuMemAlloc_v2" && status === OUT_OF_MEMORY;
      expect(error).toBeInstanceOf(outOfMemory ? CudaOutOfMemoryError : CudaError);
      expect(error).toMatchObject({ call, status, fatal: FATAL.includes(status), exitCode: 69 });
      expect((error as CudaError).code).toBe(outOfMemory ? "out_of_memory" : "cuda_error");
    }
    run();
  });

  test("names the kernel and its shape", () => {
    const run = norm(3);
    machine.cuda.fail("cuLaunchKernelEx", 719);
    expect(run).toThrow(/cuLaunchKernelEx failed for rms_norm, grid \[3, 1, 1\], block 32, 0 bytes shared/);
  });

  test("of cuBLASLt is a typed error, not fatal by itself", () => {
    const [x, weight, out] = [
      [2, 16],
      [8, 16],
      [2, 8],
    ].map((shape) => backend.empty("bfloat16", shape));
    machine.cublas.status = 13;
    const error = thrown(() => backend.linear(out!, x!, denseWeight(weight!)));
    expect(error).toBeInstanceOf(CublasError);
    expect(error).toMatchObject({ status: 13, fatal: false });
    machine.cublas.status = 0;
    backend.linear(out!, x!, denseWeight(weight!));
  });
});

describe("a captured graph", () => {
  test("runs nothing when it is recorded, and the same launches each time it is replayed", () => {
    const run = norm(5);
    const tensor = backend.empty("int32", [2]);
    backend.fill(tensor, 0);
    machine.cuda.launches.length = 0;
    const graph = backend.capture(() => {
      run();
      backend.fill(tensor.rows(1, 2), 1);
      run();
    });
    expect(machine.cuda.launches).toEqual([]);
    expect([...backend.download(tensor)]).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
    graph.launch();
    graph.launch();
    expect(machine.cuda.launches.map(({ entry }) => entry)).toEqual(Array(4).fill("rms_norm"));
    expect([...backend.download(tensor)]).toEqual([0, 0, 0, 0, 1, 1, 1, 1]);
    graph.dispose();
    graph.dispose();
    expect(() => graph.launch()).toThrow(InvariantError);
    expect(machine.cuda.alive("graph")).toEqual([]);
  });

  test("keeps the memory of ops that it may hold; before it, what they outgrow is given back", () => {
    const weight = denseWeight(backend.empty("bfloat16", [64, 64]));
    const [gamma, out] = [backend.empty("bfloat16", [64]), backend.empty("bfloat16", [4000, 64])];
    const x = backend.empty("bfloat16", [4000, 64]);
    const run = (tokens: number) =>
      backend.linear(out.rows(0, tokens), x.rows(0, tokens), weight, { norm: { weight: gamma, eps: 1e-6 } });
    const alive = () => machine.cuda.alive("device memory").length;
    run(20);
    const before = alive();
    run(200);
    expect(alive()).toBe(before);
    const graph = backend.capture(() => run(200));
    run(4000);
    expect(alive()).toBe(before + 1);
    graph.launch();
    graph.dispose();
  });

  test("whose recording fails leaves nothing, and the stream usable", () => {
    const run = norm();
    const live = machine.cuda.live.size;
    expect(() =>
      backend.capture(() => {
        run();
        throw new Error("half way");
      }),
    ).toThrow("half way");
    for (const call of ["cuStreamBeginCapture_v2", "cuGraphInstantiateWithFlags", "cuGraphUpload"] as const) {
      machine.cuda.fail(call, OUT_OF_MEMORY);
      expect(() => backend.capture(run)).toThrow(call);
    }
    expect(machine.cuda.alive("graph").length + machine.cuda.alive("graph exec").length).toBe(0);
    expect(machine.cuda.live.size).toBe(live);
    run();
    backend.synchronize();
  });
});

describe("disposal", () => {
  const orders = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
  ];

  test.each(orders)(
    "in order %d, %d, %d of backend, buffer and graph, and twice, frees everything",
    (...order) => {
      const graph = backend.capture(norm());
      const buffer = backend.allocate(100);
      backend.readback(backend.empty("int32", [4]));
      const all = [backend, buffer, graph];
      for (const i of [...order, ...order]) all[i]!.dispose();
      expect(machine.leftovers).toEqual([]);
      expect(() => backend.allocate(1)).toThrow(InvariantError);
      expect(() => backend.synchronize()).toThrow(InvariantError);
    },
  );

  test("of a lost device is silent, whatever fails", () => {
    backend.capture(norm());
    backend.empty("int32", [4]);
    for (const name of Object.keys(machine.cuda.api) as (keyof CudaApi)[])
      for (let nth = 1; nth <= 99; nth++) machine.cuda.fail(name, 700, nth);
    expect(() => backend.dispose()).not.toThrow();
    expect(machine.cublas.live.size).toBe(0);
    machine.cuda.live.clear();
  });
});

describe("opening", () => {
  test("refuses float32 before it touches the device", () => {
    const { length } = machine.cuda.calls;
    expect(() => machine.backend("float32")).toThrow(ConfigError);
    expect(machine.cuda.calls.slice(length).filter((call) => call.includes("Ctx"))).toEqual([]);
  });

  test.each([OUT_OF_MEMORY, 700, 999])("leaves nothing when any call fails with %d", (status) => {
    const cuda = machine.open();
    const { length } = machine.cuda.calls;
    machine.backend().dispose();
    const calls = machine.cuda.calls.slice(length, machine.cuda.calls.lastIndexOf("cuMemAlloc_v2") + 1);
    const opening = calls.slice(calls.indexOf("cuDevicePrimaryCtxRetain")) as (keyof CudaApi)[];
    expect(opening.length).toBeGreaterThan(8);
    backend.dispose();
    const seen = new Map<string, number>();
    for (const call of opening) {
      const nth = (seen.get(call) ?? 0) + 1;
      seen.set(call, nth);
      machine.cuda.fail(call, status, nth);
      expect(() => new (backend.constructor as typeof CudaBackend)(cuda, "bfloat16")).toThrow(DeviceError);
      expect(machine.leftovers).toEqual([]);
    }
  });

  test("leaves nothing when cuBLASLt does not start", () => {
    backend.dispose();
    machine.cublas.status = 1;
    expect(() => machine.backend()).toThrow(CublasError);
  });

  test.each([
    [8, 0, false],
    [8, 9, false],
    [9, 0, true],
    [10, 0, true],
    [12, 0, true],
  ])("compute capability %d.%d: kernels overlap with the one ahead: %p", (major, minor, dependent) => {
    using other = new FakeMachine({ computeCapability: [major, minor] });
    backend.dispose();
    backend = other.backend();
    norm();
    expect(other.cuda.launches.map((launch) => launch.dependent)).toEqual([dependent]);
  });
});

describe("preparing", () => {
  const SHAPE = {
    ...{ hiddenSize: 64, intermediateSize: 192, numHeads: 4, numKvHeads: 2, headDim: 32 },
    attentionForms: [plainForm(32)],
    ...{ blockSize: 16, vocabSize: 200 },
  };

  test("compiles each unit once; kernels it foresaw need no compiler", async () => {
    await backend.prepare(SHAPE);
    const compiled = machine.nvrtc.requests.length;
    expect(new Set(machine.nvrtc.requests.map(({ name }) => name)).size).toBe(13);
    norm();
    await backend.prepare(SHAPE);
    expect(machine.nvrtc.requests).toHaveLength(compiled);
  });

  test("refuses heads that attention cannot take", async () => {
    expect(backend.prepare({ ...SHAPE, headDim: 80 })).rejects.toThrow("head dimension 80");
  });

  test("of a backend that is disposed of meanwhile loads nothing", async () => {
    const preparing = backend.prepare(SHAPE);
    backend.dispose();
    await preparing;
    expect(machine.cuda.alive("module")).toEqual([]);
  });
});
