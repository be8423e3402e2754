import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Compiler } from "../../../src/backend/cuda/compiler.ts";
import { NvrtcError } from "../../../src/cuda/errors.ts";
import { openCublasLt, openNvrtc, thisMachine } from "../../../src/cuda/open-cuda.ts";
import { available, describeWith } from "../../requirements.ts";

setDefaultTimeout(300_000);

// The real libraries, which need no GPU to be loaded. With a GPU comes cuBLASLt, with NVRTC alone it need not.
const NVRTC = available(() => openNvrtc(thisMachine(), 13));
const CUBLAS = available(() => openCublasLt(thisMachine(), 13));

const REQUEST = {
  name: "scale.cu",
  source: '#include "factor.cuh"\nextern "C" __global__ void scale(float* x) { x[threadIdx.x] *= FACTOR; }',
  headers: { "factor.cuh": "#pragma once\n#define FACTOR 2.0f\n" },
  options: ["--gpu-architecture=sm_90a"],
};

describeWith("OCTAVO_REQUIRE_NVRTC", NVRTC, "NVRTC", ({ nvrtc, files }) => {
  test("compiles a kernel with a header to a cubin that names it", () => {
    const { cubin, log } = nvrtc.compile(REQUEST);
    expect([...cubin.subarray(0, 4)]).toEqual([0x7f, 0x45, 0x4c, 0x46]);
    expect(Buffer.from(cubin).includes("scale")).toBe(true);
    expect(log).toBe("");
  });

  test("an error carries file, line and log", () => {
    const compile = () => nvrtc.compile({ ...REQUEST, source: "__global__ void k() {\n  nonsense;\n}" });
    expect(compile).toThrow(NvrtcError);
    expect(compile).toThrow('scale.cu(2): error: identifier "nonsense" is undefined');
  });

  test("an option it does not know is an error", () => {
    const compile = () => nvrtc.compile({ ...REQUEST, options: ["--gpu-architecture=sm_1"] });
    expect(compile).toThrow("nvrtcCompileProgram failed for scale.cu");
  });

  test("Workers compile what the cache lacks, and report errors with the log", async () => {
    const folder = mkdtempSync(join(tmpdir(), "octavo-nvrtc-"));
    mkdirSync(join(folder, "include"));
    writeFileSync(join(folder, "include/factor.cuh"), REQUEST.headers["factor.cuh"]);
    writeFileSync(join(folder, "scale.cu"), `${REQUEST.source}\nconstexpr int n = N;`);
    const compiler = new Compiler(nvrtc, {
      sourceFolder: folder,
      arch: "sm_90a",
      cacheFolder: join(folder, "cache"),
      nvrtcFiles: files,
      warn: () => {},
    });
    const units = [1, 2, 3].map((N) => ({ file: "scale.cu", defines: { N } }));
    const cubins = await compiler.compileAll(units);
    expect(cubins.map((cubin) => cubin[1])).toEqual([0x45, 0x45, 0x45]);
    expect(compiler.compile(units[2]!)).toEqual(cubins[2]!);
    const wrong = compiler.compileAll([{ file: "scale.cu" }, { file: "scale.cu", defines: { N: "oops" } }]);
    await expect(wrong).rejects.toThrow(/identifier "(N|oops)" is undefined/);
    rmSync(folder, { recursive: true });
  });
});

describeWith("OCTAVO_REQUIRE_GPU", CUBLAS, "cuBLASLt", ({ api }) => {
  test("loads with every symbol, and says its version", () => {
    expect(Number(api.cublasLtGetVersion())).toBeGreaterThan(120000);
    expect(api.cublasLtGetStatusName(15)).toBe("CUBLAS_STATUS_NOT_SUPPORTED");
  });
});
