import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { archOf, Compiler, type CompilerOptions } from "../../../../src/backend/cuda/compiler.ts";
import { KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { compileKey, type Macros } from "../../../../src/backend/cuda/kernel-source.ts";
import { Context } from "../../../../src/cuda/context.ts";
import { Device } from "../../../../src/cuda/device.ts";
import { NvrtcError } from "../../../../src/cuda/errors.ts";
import type { CompileRequest, KernelCompiler } from "../../../../src/cuda/nvrtc.ts";
import { FakeCuda } from "../../cuda/fake-cuda.ts";

setDefaultTimeout(300_000);

/** "Compiles" a request to its JSON, and counts. */
class FakeCompiler implements KernelCompiler {
  readonly requests: CompileRequest[] = [];
  log = "";

  constructor(readonly version = "13.2") {}

  compile(request: CompileRequest) {
    this.requests.push(request);
    if (request.source.includes("syntax error")) {
      throw new NvrtcError(
        "nvrtcCompileProgram",
        6,
        "NVRTC_ERROR_COMPILATION",
        "k.cu(1): error: oh",
        request.name,
      );
    }
    return { cubin: new TextEncoder().encode(JSON.stringify(request)), log: this.log };
  }
}

let folder: string;
let warnings: string[];
let nvrtc: FakeCompiler;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "octavo-compiler-"));
  mkdirSync(join(folder, "source/include"), { recursive: true });
  write("k.cu", '#include "a.cuh"\nextern "C" __global__ void entry(int* x) {}');
  write("include/a.cuh", '  #  include "b.cuh"\n#include <system.h>\na');
  write("include/b.cuh", '#include "a.cuh"\n#include "missing.cuh"\nb');
  warnings = [];
  nvrtc = new FakeCompiler();
});
afterEach(() => rmSync(folder, { recursive: true }));

function write(file: string, text: string): void {
  writeFileSync(join(folder, "source", file), text);
}

function options(changes: Partial<CompilerOptions> = {}): CompilerOptions {
  return {
    sourceFolder: join(folder, "source"),
    arch: "sm_90a",
    cacheFolder: join(folder, "cache"),
    warn: (message) => warnings.push(message),
    ...changes,
  };
}

/** A new compiler each time, as after a restart. */
function compiler(changes: Partial<CompilerOptions> = {}): Compiler {
  return new Compiler(nvrtc, options(changes));
}

const entries = () => readdirSync(join(folder, "cache"));

test("a unit is compiled with all that it includes, its macros and its architecture", () => {
  compiler({ extraOptions: ["--generate-line-info"] }).compile({
    file: "k.cu",
    defines: { HEAD_DIM: 128, T: "half" },
  });
  const [request] = nvrtc.requests;
  expect(Object.keys(request!.headers).sort()).toEqual(["a.cuh", "b.cuh"]);
  expect(request!.headers["b.cuh"]).toContain("b");
  expect(request!.options).toContain("--gpu-architecture=sm_90a");
  expect(request!.options.slice(-3)).toEqual(["--generate-line-info", "-DHEAD_DIM=128", "-DT=half"]);
});

describe("the cache", () => {
  test("gives back what was compiled, also to another process", () => {
    const first = compiler().compile({ file: "k.cu" });
    expect(compiler().compile({ file: "k.cu" })).toEqual(first);
    expect(nvrtc.requests).toHaveLength(1);
    expect(entries()).toHaveLength(1);
  });

  test("key changes with source, header name, header text, option, option order and NVRTC version", () => {
    const base: CompileRequest = {
      name: "k.cu",
      source: "s",
      headers: { "a.cuh": "a" },
      options: ["-x", "-y"],
    };
    const keys = [
      compileKey(base, "13.2"),
      compileKey(base, "13.3"),
      compileKey({ ...base, source: "s2" }, "13.2"),
      compileKey({ ...base, headers: { "b.cuh": "a" } }, "13.2"),
      compileKey({ ...base, headers: { "a.cuh": "b" } }, "13.2"),
      compileKey({ ...base, headers: {} }, "13.2"),
      compileKey({ ...base, options: ["-x"] }, "13.2"),
      compileKey({ ...base, options: ["-y", "-x"] }, "13.2"),
      compileKey({ ...base, options: ["-x-y"] }, "13.2"),
    ];
    expect(new Set(keys).size).toBe(keys.length);
    expect(compileKey({ ...base }, "13.2")).toBe(keys[0]!);
  });

  test.each([
    ["a header two includes away", () => write("include/b.cuh", "changed"), {}],
    ["the architecture", () => {}, { arch: "sm_80" }],
    ["an option", () => {}, { extraOptions: ["--use_fast_math"] }],
  ])("a change of %s compiles again", (_name, change, changes) => {
    compiler().compile({ file: "k.cu" });
    change();
    compiler(changes).compile({ file: "k.cu" });
    expect(nvrtc.requests).toHaveLength(2);
  });

  test.each([
    ["cut short", (path: string) => truncateSync(path, 60)],
    ["empty", (path: string) => truncateSync(path, 0)],
    [
      "altered",
      (path: string) => {
        const bytes = readFileSync(path);
        bytes[bytes.length - 1]! ^= 1;
        writeFileSync(path, bytes);
      },
    ],
    ["of another kind", (path: string) => writeFileSync(path, "ELF and so on, long enough to hold a header")],
  ])("an entry that is %s is compiled again and replaced", (_name, damage) => {
    const first = compiler().compile({ file: "k.cu" });
    damage(join(folder, "cache", entries()[0]!));
    expect(compiler().compile({ file: "k.cu" })).toEqual(first);
    expect(nvrtc.requests).toHaveLength(2);
    compiler().compile({ file: "k.cu" });
    expect(nvrtc.requests).toHaveLength(2);
    expect(entries()).toHaveLength(1);
  });

  test("that cannot be written costs one warning, not the kernel", () => {
    writeFileSync(join(folder, "file"), "");
    const blocked = compiler({ cacheFolder: join(folder, "file/cache") });
    write("l.cu", "another");
    expect(blocked.compile({ file: "k.cu" }).length).toBeGreaterThan(0);
    expect(blocked.compile({ file: "l.cu" }).length).toBeGreaterThan(0);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain("not writable");
  });
});

test("an error carries the compiler's log and is not cached", () => {
  write("k.cu", "syntax error");
  expect(() => compiler().compile({ file: "k.cu" })).toThrow("k.cu(1): error: oh");
  write("k.cu", "fixed");
  expect(() => compiler().compile({ file: "k.cu" })).not.toThrow();
});

test("warnings of the compiler are passed on", () => {
  nvrtc.log = "k.cu(3): warning: unused";
  compiler().compile({ file: "k.cu" });
  expect(warnings).toEqual(["k.cu: k.cu(3): warning: unused"]);
});

test("compileAll keeps the order and compiles only what is missing", async () => {
  const units = [1, 2, 3].map((N) => ({ file: "k.cu", defines: { N } }));
  compiler().compile(units[1]!);
  const cubins = await compiler().compileAll(units);
  const text = cubins.map((cubin) => new TextDecoder().decode(cubin));
  expect(text.map((json) => JSON.parse(json).options.at(-1))).toEqual(["-DN=1", "-DN=2", "-DN=3"]);
  expect(nvrtc.requests).toHaveLength(3);
});

test("architectures are named as NVRTC expects", () => {
  expect([archOf(8, 0), archOf(8, 9), archOf(9, 0), archOf(10, 0), archOf(12, 0)]).toEqual([
    "sm_80",
    "sm_89",
    "sm_90a",
    "sm_100",
    "sm_120",
  ]);
});

test.each([["constants"], ["defines"]] as const)("a change of a unit's %s compiles again", (macros) => {
  for (const value of [1, 1, 2]) compiler().compile({ file: "k.cu", [macros]: { A: value } });
  expect(nvrtc.requests.map(({ options }) => options.at(-1))).toEqual(["-DA=1", "-DA=2"]);
});

describe("the kernel library", () => {
  let fake: FakeCuda;
  let context: Context;

  beforeEach(() => {
    fake = new FakeCuda();
    fake.kernels.set("entry", 1);
    context = Context.retain(fake.api, Device.open(fake.api, 0));
  });

  const unit = (defines: Macros) => ({ file: "k.cu", defines });

  test("compiles and loads a unit once, however its macros are ordered", () => {
    const library = KernelLibrary.create(context, nvrtc, options());
    const kernel = library.kernel(unit({ A: 1, B: 2 }), "entry");
    expect(library.kernel(unit({ B: 2, A: 1 }), "entry")).toBe(kernel);
    expect(library.kernel(unit({ A: 1, B: 2 }), "entry", { dependentLaunch: true })).not.toBe(kernel);
    expect(fake.alive("module")).toHaveLength(1);
    expect(library.kernel(unit({ A: 1, B: 3 }), "entry")).not.toBe(kernel);
    expect(fake.alive("module")).toHaveLength(2);
    expect(library.kernel({ ...unit({ A: 1, B: 2 }), constants: { C: 1 } }, "entry")).not.toBe(kernel);
    expect(fake.alive("module")).toHaveLength(3);
    context.dispose();
    expect(fake.live.size).toBe(0);
  });

  test("prepares many units, each once, so that kernels need no compiler", async () => {
    const library = KernelLibrary.create(context, nvrtc, options());
    const units = [{ file: "k.cu" }, { file: "k.cu", defines: { A: 1 } }, { file: "k.cu" }];
    await library.prepare(units);
    await library.prepare(units);
    expect(nvrtc.requests).toHaveLength(2);
    library.kernel(unit({ A: 1 }), "entry");
    expect(nvrtc.requests).toHaveLength(2);
    context.dispose();
    expect(fake.alive("module")).toEqual([]);
  });

  test("compiles for the context's GPU", () => {
    const { arch: _, ...rest } = options();
    KernelLibrary.create(context, nvrtc, rest).kernel({ file: "k.cu" }, "entry");
    expect(nvrtc.requests[0]!.options).toContain("--gpu-architecture=sm_90a");
    context.dispose();
  });
});
