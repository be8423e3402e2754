import { type Pointer, toArrayBuffer } from "bun:ffi";
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { DeviceError, InvariantError } from "../../../src/base/errors.ts";
import { Context } from "../../../src/cuda/context.ts";
import { Device } from "../../../src/cuda/device.ts";
import { NcclError } from "../../../src/cuda/errors.ts";
import { DeviceMemory } from "../../../src/cuda/memory.ts";
import { NcclComm, ncclUniqueId, ncclVersion } from "../../../src/cuda/nccl.ts";
import { type Machine, openNccl, thisMachine } from "../../../src/cuda/open-cuda.ts";
import { available } from "../../requirements.ts";
import { FakeCuda } from "./fake-cuda.ts";
import { FakeNccl } from "./fake-nccl.ts";

setDefaultTimeout(300_000);

let cuda: FakeCuda;
let nccl: FakeNccl;
let context: Context;

beforeEach(() => {
  cuda = new FakeCuda();
  nccl = new FakeNccl();
  context = Context.retain(cuda.api, Device.open(cuda.api, 0));
});

afterEach(() => {
  context.dispose();
  expect([...nccl.live.keys()]).toEqual([]);
  expect(cuda.violations).toEqual([]);
});

function ranks(size: number): NcclComm[] {
  const id = ncclUniqueId(nccl.api);
  return Array.from({ length: size }, (_, rank) => NcclComm.join(nccl.api, context, { rank, size }, id));
}

function memory(...values: number[]): { address: number; values: Float32Array } {
  const { value: address } = DeviceMemory.allocate(context, values.length * 4);
  const view = new Float32Array(toArrayBuffer(address as Pointer, 0, values.length * 4));
  view.set(values);
  return { address, values: view };
}

describe("ranks", () => {
  test("sum, in place or not", () => {
    const [a, b] = [memory(1, 2, 3), memory(10, 20, 30)];
    const out = memory(0, 0, 0);
    const [first, second] = ranks(2);
    first!.allReduce(out.address, a.address, 3, "float32", 7);
    second!.allReduce(b.address, b.address, 3, "float32", 7);
    expect([...out.values]).toEqual([11, 22, 33]);
    expect([...b.values]).toEqual([11, 22, 33]);
  });

  test("gather 32-bit words", () => {
    const [a, b] = [memory(1, 2), memory(3, 4)];
    const outs = [memory(0, 0, 0, 0), memory(0, 0, 0, 0)];
    for (const [rank, comm] of ranks(2).entries())
      comm.allGather(outs[rank]!.address, [a, b][rank]!.address, 2, 7);
    for (const { values } of outs) expect([...values]).toEqual([1, 2, 3, 4]);
  });

  test("join with an id of 128 bytes only", () => {
    expect(ncclUniqueId(nccl.api)).toHaveLength(128);
    expect(() => NcclComm.join(nccl.api, context, { rank: 0, size: 2 }, new Uint8Array(16))).toThrow(
      InvariantError,
    );
  });
});

describe("a failure", () => {
  test("carries the call, the status, its text, NCCL's last error and the rank", () => {
    nccl.failures.set("ncclCommInitRankScalable", 1);
    nccl.lastError = "Cuda failure 'no device'\n";
    expect(() => ranks(2)).toThrow(
      "ncclCommInitRankScalable failed for rank 0 of 2: fake error 1 (1), Cuda failure 'no device'",
    );
  });

  test("of a refused call leaves the ranks in step; any other does not", () => {
    const fatal = [1, 2, 3, 4, 5, 6, 8].filter((status) => new NcclError("f", status, "", "").fatal);
    expect(fatal).toEqual([1, 2, 3, 6, 8]);
  });

  test("that comes later is found by asking; work in progress is none", () => {
    const [comm] = ranks(1);
    for (const status of [0, 7]) {
      nccl.asyncError = status;
      comm!.check();
    }
    nccl.asyncError = 6;
    expect(() => comm!.check()).toThrow("ncclCommGetAsyncError failed: fake error 6 (6)");
  });

  test("leads to an abort, after which nothing waits for the other ranks", () => {
    const [comm] = ranks(1);
    comm!.abort();
    comm!.abort();
    comm!.dispose();
    comm!.abort();
    const ends = nccl.calls.filter((name) => /Abort|Destroy/.test(name));
    expect(ends).toEqual(["ncclCommAbort"]);
  });
});

describe("openNccl", () => {
  const machine = (libraries: Readonly<Record<string, object>>, defaults: string[] = []): Machine => ({
    host: { env: {}, root: "/nonexistent", cwd: "/nonexistent", home: "/nonexistent" },
    open: ((path: string) => {
      if (libraries[path] === undefined) throw new Error(`${path}: cannot open shared object file`);
      return libraries[path];
    }) as Machine["open"],
    preload: () => undefined,
    setDefault: (name, value) => void defaults.push(`${name}=${value}`),
  });

  test("finds it by its soname and asks for its version; multicast is off unless asked for", () => {
    const defaults: string[] = [];
    const { version, library } = openNccl(machine({ "libnccl.so.2": nccl.api }, defaults), 13);
    expect([version, library.path]).toEqual(["2.32.3", "libnccl.so.2"]);
    expect(defaults).toEqual(["NCCL_NVLS_ENABLE=0"]);
  });

  test("refuses what is too old or missing, with the remedy", () => {
    nccl.version = 22205;
    const old = () => openNccl(machine({ "libnccl.so.2": nccl.api }), 12);
    expect(old).toThrow(DeviceError);
    expect(old).toThrow(
      "NCCL 2.22.5 (libnccl.so.2) is too old, Octavo needs 2.23: pip install nvidia-nccl-cu12",
    );
    expect(() => openNccl(machine({}), 13)).toThrow("pip install nvidia-nccl-cu13");
  });

  test("versions are those of 2.9 and newer", () => {
    expect([20905, 22300, 23207].map(ncclVersion)).toEqual(["2.9.5", "2.23.0", "2.32.7"]);
  });
});

const installed = available(() => openNccl(thisMachine(), 13));
test.skipIf(typeof installed === "string")(
  "a real NCCL has every function of the table and says what fails",
  () => {
    if (typeof installed === "string") return;
    const { api } = installed;
    expect(ncclUniqueId(api).some((byte) => byte !== 0)).toBe(true);
    // Ranks that do not exist are refused before any GPU is looked for.
    const join = () => NcclComm.join(api, context, { rank: 2, size: 2 }, ncclUniqueId(api));
    expect(join).toThrow(/ncclCommInitRankScalable failed for rank 2 of 2: /);
  },
);
