import { setDefaultTimeout } from "bun:test";
import { CudaBackend } from "../../src/backend/cuda/cuda-backend.ts";
import type { FloatDType } from "../../src/base/dtype.ts";
import { describeGpu } from "../gpu/gpu.ts";
import { runContract } from "./backend.contract.ts";

setDefaultTimeout(300_000);

for (const dtype of ["bfloat16", "float16"] satisfies FloatDType[]) {
  describeGpu(dtype, (cuda) => runContract("cuda", () => new CudaBackend(cuda, dtype)));
}
