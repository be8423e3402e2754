import type { ModelShape } from "../../../../src/backend/backend.ts";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER, KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { KernelOps } from "../../../../src/backend/cuda/kernel-ops.ts";
import type { KernelUnit } from "../../../../src/backend/cuda/kernel-source.ts";
import type { FloatDType } from "../../../../src/base/dtype.ts";
import type { Context } from "../../../../src/cuda/context.ts";
import type { KernelCompiler } from "../../../../src/cuda/nvrtc.ts";

/** What the wrappers compile for a model; they launch nothing here. */
export function unitsOf(dtype: FloatDType, shape: ModelShape): KernelUnit[] {
  const unused = () => {
    throw new Error("nothing is launched");
  };
  const options = { dtype, smCount: 132, dependentLaunch: true, allocate: unused, allocateZeroed: unused };
  const compiler = new Compiler({} as KernelCompiler, { sourceFolder: KERNEL_FOLDER, arch: "none" });
  const library = new KernelLibrary({} as Context, compiler);
  return new KernelOps(library, options).units(shape);
}
