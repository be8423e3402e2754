import type { ModelShape } from "../../../../src/backend/backend.ts";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER, KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { KernelOps } from "../../../../src/backend/cuda/kernel-ops.ts";
import type { KernelUnit } from "../../../../src/backend/cuda/kernel-source.ts";
import type { FloatDType } from "../../../../src/base/dtype.ts";
import type { Context } from "../../../../src/cuda/context.ts";
import type { KernelCompiler } from "../../../../src/cuda/nvrtc.ts";

/** Of Hopper. */
const SHARED = { sharedBytesPerBlock: 227 * 1024, sharedBytesPerSm: 228 * 1024 };

/** What the wrappers compile for a model; they launch nothing here. */
export function unitsOf(dtype: FloatDType, hopper: boolean, shape: ModelShape): KernelUnit[] {
  const unused = () => {
    throw new Error("nothing is launched");
  };
  const memory = { allocate: unused, allocateZeroed: unused, upload: unused, encodeTensorMap: unused };
  const options = { dtype, smCount: 132, ...SHARED, dependentLaunch: hopper, hopper, ...memory };
  const compiler = new Compiler({} as KernelCompiler, { sourceFolder: KERNEL_FOLDER, arch: "none" });
  const library = new KernelLibrary({} as Context, compiler);
  return new KernelOps(library, options).units(shape);
}
