import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { DeviceError } from "../../../src/base/errors.ts";
import { inspectCuda } from "../../../src/cuda/cuda-report.ts";
import type { SearchHost } from "../../../src/cuda/libraries.ts";
import { gpuCount, type Machine, openCuda } from "../../../src/cuda/open-cuda.ts";
import { FakeCuda, type FakeGpu } from "./fake-cuda.ts";
import { FakeNccl } from "./fake-nccl.ts";

setDefaultTimeout(300_000);

const H200: FakeGpu = { name: "NVIDIA H200", computeCapability: [9, 0], memory: 141 * 2 ** 30 };

const nvrtc = {
  nvrtcVersion: (major: Int32Array, minor: Int32Array) => {
    major[0] = 13;
    minor[0] = 2;
    return 0;
  },
  nvrtcGetNumSupportedArchs: (count: Int32Array) => {
    count[0] = 2;
    return 0;
  },
  nvrtcGetSupportedArchs: (architectures: Int32Array) => {
    architectures.set([80, 90]);
    return 0;
  },
};
const cublasLt = { cublasLtGetVersion: () => 130401n };

interface Parts {
  readonly cuda?: FakeCuda;
  readonly libraries?: Readonly<Record<string, object>>;
  readonly env?: Record<string, string>;
}

/** A machine without files, whose dynamic loader knows the libraries given. */
function machine({ cuda = new FakeCuda([H200]), libraries, env = {} }: Parts = {}): Machine {
  const host: SearchHost = { env, root: "/nonexistent", cwd: "/nonexistent", home: "/nonexistent" };
  const known: Readonly<Record<string, object>> = libraries ?? {
    "libcuda.so.1": cuda.api,
    "libnvrtc.so.13": nvrtc,
    "libcublasLt.so.13": cublasLt,
  };
  const open = (path: string) => {
    const library = known[path];
    if (library === undefined) throw new Error(`${path}: cannot open shared object file`);
    return library;
  };
  return { host, open: open as Machine["open"], preload: () => undefined, setDefault: () => {} };
}

describe("openCuda", () => {
  test("returns the driver, the device and the libraries", () => {
    const cuda = openCuda(0, machine());
    expect(cuda.driver.version).toEqual([13, 0]);
    expect(cuda.device).toMatchObject({
      name: "NVIDIA H200",
      computeCapability: [9, 0],
      multiprocessors: 132,
      totalMemory: 141 * 2 ** 30,
      sharedMemoryPerBlock: 227 * 1024,
    });
    expect(cuda.nvrtc.version).toBe("13.2");
    expect(cuda.nvrtcFiles).toEqual({ library: "libnvrtc.so.13", builtins: undefined });
  });

  const old = new FakeCuda([H200]);
  old.driverVersion = 11080;
  const broken = new FakeCuda([H200]);
  for (const nth of [1, 2]) broken.fail("cuInit", 803, nth);
  const cuda = new FakeCuda([H200]).api;
  const v100: FakeGpu = { name: "Tesla V100", computeCapability: [7, 0], memory: 2 ** 34 };
  const blackwell: FakeGpu = { name: "NVIDIA B200", computeCapability: [10, 0], memory: 2 ** 37 };

  test.each<[string, Parts, RegExp]>([
    ["no driver", { libraries: {} }, /libcuda\.so\.1\) cannot be loaded: install the NVIDIA driver/],
    ["an old driver", { cuda: old }, /supports CUDA 11\.8, Octavo needs 12\.0: update the driver to 525/],
    ["a driver that does not start", { cuda: broken }, /does not start: see that nvidia-smi works/],
    ["no GPU", { cuda: new FakeCuda([]) }, /shows no GPU: in a container, pass it through/],
    [
      "a hidden GPU",
      { cuda: new FakeCuda([]), env: { CUDA_VISIBLE_DEVICES: "" } },
      /shows no GPU: CUDA_VISIBLE_DEVICES is ""/,
    ],
    [
      "an old GPU",
      { cuda: new FakeCuda([v100]) },
      /Tesla V100 has compute capability 7\.0, Octavo needs 8\.0/,
    ],
    [
      "a GPU newer than NVRTC",
      { cuda: new FakeCuda([blackwell]) },
      /NVRTC 13\.2 .* cannot compile for NVIDIA B200, compute capability 10\.0: pip install/,
    ],
    [
      "no NVRTC",
      { libraries: { "libcuda.so.1": cuda } },
      /NVRTC .* cannot be loaded: pip install nvidia-cuda-nvrtc/,
    ],
    [
      "no cuBLASLt",
      { libraries: { "libcuda.so.1": cuda, "libnvrtc.so.13": nvrtc } },
      /cuBLASLt .* cannot be loaded: pip install nvidia-cublas/,
    ],
  ])("%s", (_name, parts, message) => {
    const open = () => openCuda(0, machine(parts));
    expect(open).toThrow(DeviceError);
    expect(open).toThrow(message);
  });

  test("a GPU that is not there", () => {
    expect(() => openCuda(3, machine())).toThrow("GPU 3 was asked for, but only 1 is visible");
  });

  test("a driver for CUDA 12 is not given libraries for 13", () => {
    const driver = new FakeCuda([H200]);
    driver.driverVersion = 12040;
    expect(() => openCuda(0, machine({ cuda: driver }))).toThrow("pip install nvidia-cuda-nvrtc-cu12");
  });

  test("what the loader said is kept as the cause", () => {
    try {
      openCuda(0, machine({ libraries: {} }));
      expect.unreachable();
    } catch (error) {
      expect((error as Error).cause).toBeInstanceOf(AggregateError);
      expect(((error as Error).cause as Error).message).toContain("libcuda.so.1: cannot open");
    }
  });
});

test("gpuCount is 0 when anything is missing", () => {
  expect(gpuCount(machine())).toBe(1);
  expect(gpuCount(machine({ cuda: new FakeCuda([H200, H200]) }))).toBe(2);
  expect(gpuCount(machine({ cuda: new FakeCuda([]) }))).toBe(0);
  expect(gpuCount(machine({ libraries: {} }))).toBe(0);
});

describe("inspectCuda", () => {
  test("reports what works", () => {
    const report = inspectCuda(machine({ cuda: new FakeCuda([H200, { ...H200, name: "second" }]) }));
    expect(report.driverVersion).toBe("13.0");
    expect(report.gpus.map(({ ordinal, name }) => [ordinal, name])).toEqual([
      [0, "NVIDIA H200"],
      [1, "second"],
    ]);
    expect(report.gpus[0]).toMatchObject({ computeCapability: "9.0", multiprocessors: 132 });
    expect(report.gpus.map(({ reaches }) => reaches)).toEqual([[1], [0]]);
    expect(report.libraries.map(({ name, version }) => [name, version])).toEqual([
      ["cuda", "13.0"],
      ["nvrtc", "13.2"],
      ["cublasLt", "13.4.1"],
      ["nccl", undefined],
    ]);
  });

  test("shows NCCL, or why it is of no use", () => {
    const nccl = new FakeNccl();
    const libraries = { "libnccl.so.2": nccl.api };
    const shown = () => inspectCuda(machine({ libraries })).libraries[3];
    expect(shown()).toMatchObject({ name: "nccl", version: "2.32.3", source: "dynamic loader" });
    nccl.version = 21805;
    expect(shown()!.problem).toStartWith("NCCL 2.18.5 (libnccl.so.2) is too old, Octavo needs 2.23: ");
  });

  test("with nothing installed, says how to get each", () => {
    const report = inspectCuda(machine({ libraries: {} }));
    expect(report.driverVersion).toBeUndefined();
    expect(report.gpus).toEqual([]);
    for (const library of report.libraries) {
      expect(library.problem).toMatch(/install/);
      expect(library.problem).not.toContain("cannot open");
    }
  });

  test("a library that is there but does not load says why", () => {
    const { open, ...rest } = machine({ libraries: {} });
    const loaders: Record<string, string> = {
      "libnvrtc.so.13": "libnvrtc.so.13: cannot open shared object file: Permission denied",
      "libcublasLt.so.13": "libother.so.1: cannot open shared object file: No such file or directory",
    };
    const picky: Machine["open"] = (path, symbols) => {
      if (loaders[path] !== undefined) throw new Error(loaders[path]);
      return open(path, symbols);
    };
    const [cuda, nvrtc, cublasLt] = inspectCuda({ ...rest, open: picky }).libraries;
    expect(cuda!.problem).not.toContain("(Failed");
    expect(nvrtc!.problem).toEndWith(`(${loaders["libnvrtc.so.13"]})`);
    expect(cublasLt!.problem).toEndWith(`(${loaders["libcublasLt.so.13"]})`);
  });

  test("a driver that fails half-way is a problem, not an exception", () => {
    const cuda = new FakeCuda([H200]);
    cuda.fail("cuDeviceTotalMem_v2", 999);
    expect(inspectCuda(machine({ cuda })).libraries[0]?.problem).toContain("cuDeviceTotalMem_v2");
  });
});
