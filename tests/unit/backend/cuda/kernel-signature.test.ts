import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER, KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { type KernelParameter, parseKernels } from "../../../../src/backend/cuda/kernel-signature.ts";
import { type KernelDeclaration, KernelVariants } from "../../../../src/backend/cuda/ops/kernel-variants.ts";
import { InvariantError } from "../../../../src/base/errors.ts";
import type { Context } from "../../../../src/cuda/context.ts";
import type { KernelCompiler } from "../../../../src/cuda/nvrtc.ts";

setDefaultTimeout(300_000);

describe("the kernels of a source", () => {
  test("are read with names and types, whatever stands between", () => {
    const kernels = parseKernels(`
      // extern "C" __global__ void in_a_comment(int x) {}
      /* extern "C" __global__ void in_another(int x) {} */
      __device__ void helper(int x) {}
      extern "C" __global__ void __launch_bounds__((1 + 1) * WARP, 1024 / (N))
          first(float2* __restrict__ out, const elem_t *x,  // , const int* commented
                uint32 const* const words, const int32 count, uint32 mask, int n,
                int64 far, float scale, const __grid_constant__ TensorMap map) {}
      extern "C"
      __global__ void __cluster_dims__(2, (N), 1) __launch_bounds__(N) second() {}`);
    const pointer = (name: string): KernelParameter => ({ name, type: "pointer" });
    expect([...kernels.keys()]).toEqual(["first", "second"]);
    expect(kernels.get("first")!.slice(0, 3)).toEqual([pointer("out"), pointer("x"), pointer("words")]);
    expect(kernels.get("first")!.slice(3)).toEqual([
      { name: "count", type: "int32" },
      { name: "mask", type: "uint32" },
      { name: "n", type: "int32" },
      { name: "far", type: "int64" },
      { name: "scale", type: "float32" },
      { name: "map", type: "hostValue" },
    ]);
    expect(kernels.get("second")).toEqual([]);
  });

  test.each([
    ["a type without a known size", "void k(Edit edit)", 'k: no known type in "Edit edit"'],
    ["a parameter without a name", "void k(int)", 'k: no known type in "int"'],
    ["a double", "void k(double x)", 'k: no known type in "double x"'],
    ["what is no declaration", "int k(int x)", "read 0 of 1 kernels"],
    ["parentheses within", "void k(int (*f)(int))", "read 0 of 1 kernels"],
  ])("with %s are refused", (_name, declaration, message) => {
    const run = () => parseKernels(`extern "C" __global__ ${declaration} {}`);
    expect(run).toThrow(InvariantError);
    expect(run).toThrow(message);
  });
});

describe("a wrapper", () => {
  const compiler = new Compiler({} as KernelCompiler, { sourceFolder: KERNEL_FOLDER, arch: "none" });
  const library = new KernelLibrary({} as Context, compiler);
  const right = {
    file: "norm.cu",
    entry: "rms_norm",
    pointers: ["out", "x", "weight"],
    scalars: ["width", "eps"],
  };
  const build = (changes: Partial<KernelDeclaration>) =>
    new KernelVariants(library, { ...right, ...changes }, "bfloat16", {});

  test("may name the parameters in any order", () => {
    build({ pointers: ["weight", "x", "out"], scalars: ["eps", "width"] });
  });

  test.each<[string, Partial<KernelDeclaration>]>([
    ["lacks a parameter", { scalars: ["width"] }],
    ["has one too many", { scalars: ["width", "eps", "rows"] }],
    ["has one twice", { pointers: ["out", "x", "x"] }],
    ["calls one otherwise", { pointers: ["out", "x", "gamma"] }],
    ["takes a pointer for a number", { pointers: ["out", "x"], scalars: ["weight", "width", "eps"] }],
    ["takes a number for a pointer", { pointers: ["out", "x", "weight", "eps"], scalars: ["width"] }],
  ])("that %s is refused when it is made", (_name, changes) => {
    expect(() => build(changes)).toThrow(InvariantError);
    expect(() => build(changes)).toThrow(
      "norm.cu: rms_norm takes (out*, x*, weight*, width, eps), its wrapper",
    );
  });

  test("of an unknown kernel is refused", () => {
    expect(() => build({ entry: "rms_norm2" })).toThrow("norm.cu has no kernel rms_norm2");
  });
});
