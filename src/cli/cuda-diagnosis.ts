import { formatBytes } from "../base/bytes.ts";
import { messageOf } from "../base/errors.ts";
import { type CudaReport, inspectCuda } from "../cuda/cuda-report.ts";
import { openCuda } from "../cuda/open-cuda.ts";

/** The parts of CUDA that this machine has. */
export interface CudaDiagnosis extends CudaReport {
  /** Why `--device cuda` would fail. */
  readonly problem?: string;
}

export function diagnoseCuda(): CudaDiagnosis {
  const problem = cudaProblem();
  return { ...inspectCuda(), ...(problem !== undefined && { problem }) };
}

function cudaProblem(): string | undefined {
  try {
    openCuda();
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

/** The findings as titles and texts. */
export function describeCuda({
  driverVersion,
  gpus,
  libraries,
}: CudaDiagnosis): (readonly [string, string])[] {
  const found = gpus.map(({ ordinal, name, computeCapability, totalMemory, multiprocessors, reaches }) => {
    const size = `${formatBytes(totalMemory)}, ${multiprocessors} SMs`;
    const reached = gpus.length === 1 ? "" : `, reaches ${reaches.join(", ") || "no other GPU"}`;
    return [`GPU ${ordinal}`, `${name}, compute capability ${computeCapability}, ${size}${reached}`] as const;
  });
  return [
    ["driver", driverVersion ? `for CUDA up to ${driverVersion}` : "none"],
    ...(found.length > 0 ? found : [["GPUs", "none"] as const]),
    ...libraries.map(
      ({ name, path, version, source, problem }) =>
        [name, problem ?? `${version}  ${path}  (${source})`] as const,
    ),
  ];
}
