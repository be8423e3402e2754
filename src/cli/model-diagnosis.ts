import { formatBytes } from "../base/bytes.ts";
import { messageOf } from "../base/errors.ts";
import { describeWeights } from "../base/weight-summary.ts";
import type { CudaReport } from "../cuda/cuda-report.ts";
import type { ModelFit, ModelReport } from "../llm/inspect-model.ts";

/** GPUs that a model is held against where there are none. */
export const USUAL_GPUS: readonly GpuMemory[] = [24, 80].map((gib) => gpuOf(gib * 2 ** 30));
/** Default of `gpuMemoryUtilization`. */
const UTILIZATION = 0.9;

/** Memory of a GPU, and its name. */
export interface GpuMemory {
  readonly name: string;
  readonly bytes: number;
}

/** A GPU that may be anywhere. */
export function gpuOf(bytes: number): GpuMemory {
  return { name: `a GPU of ${formatBytes(bytes)}`, bytes };
}

/** The memory of this machine's GPUs, by name. */
export function gpuMemories(gpus: CudaReport["gpus"]): readonly GpuMemory[] {
  return gpus.map(({ ordinal, totalMemory }) => ({ name: `GPU ${ordinal}`, bytes: totalMemory }));
}

/** The findings about a model. */
export interface ModelDiagnosis extends Partial<ModelReport> {
  readonly path: string;
  /** Why it cannot be loaded; the rest is missing then. */
  readonly problem?: string;
  /** The room that GPUs have: those that there are, or usual ones. */
  readonly fits?: readonly (GpuMemory & ModelFit)[];
}

/**
 * @param gpus those of this machine
 * @param onProblem called with what loading the model would throw
 */
export async function diagnoseModel(
  path: string,
  gpus: readonly GpuMemory[],
  onProblem: (error: unknown) => void,
): Promise<ModelDiagnosis> {
  try {
    const { fitOf, inspectModel } = await import("../llm/inspect-model.ts");
    const report = await inspectModel(path);
    const fits = (gpus.length > 0 ? gpus : USUAL_GPUS).map((gpu) => ({
      ...gpu,
      ...fitOf(path, report, gpu.bytes, UTILIZATION),
    }));
    return { path, ...report, fits };
  } catch (error) {
    onProblem(error);
    return { path, problem: messageOf(error) };
  }
}

/** The findings as titles and texts. */
export function describeModel(found: ModelDiagnosis, memory: number): (readonly [string, string])[] {
  const {
    path,
    problem,
    architecture,
    models,
    weights,
    cpuBytes,
    cpuTokens,
    maxTokens,
    stateBytes,
    fits,
    tokenizerProblem,
  } = found;
  if (problem !== undefined || weights === undefined)
    return [
      ["path", path],
      ["runs", `no: ${problem}`],
    ];
  const state = stateBytes === undefined ? "" : `, and ${formatBytes(stateBytes)} a sequence`;
  const token = describeToken(found as ModelReport);
  const host = `${formatBytes(cpuBytes!)}, of ${formatBytes(memory)} of memory`;
  const contexts =
    cpuTokens! < maxTokens!
      ? `, with contexts of up to ${cpuTokens} tokens unless --kv-cache-memory-bytes says more`
      : "";
  return [
    ["path", path],
    ["model", `${architecture}: ${models}`],
    ["weights", describeWeights(weights)],
    ["context", `${maxTokens} tokens, each ${token}${state} on a GPU`],
    ["cpu", cpuBytes! < memory ? `runs: weights of ${host}${contexts}` : `no: weights of ${host}`],
    ...(found.cudaProblem !== undefined
      ? [["cuda", `no: ${found.cudaProblem}`] as const]
      : fits!.map((fit) => ["cuda", `${fit.name} ${describeFit(fit)}`] as const)),
    ["text", tokenizerProblem === undefined ? "its tokenizer can be used" : `no: ${tokenizerProblem}`],
  ];
}

/** The memory that a token takes. */
export function describeToken({ kvBytesPerToken, kvBytesKept, kvWindow }: ModelReport): string {
  const all = `${formatBytes(kvBytesPerToken)} of KV cache`;
  if (kvBytesKept === kvBytesPerToken) return all;
  const kept = kvBytesKept === 0 ? "nothing" : `${formatBytes(kvBytesKept)} of it`;
  return `${all}, ${kept} beyond a window of ${kvWindow} tokens`;
}

export function describeFit({ ranks, kvTokens }: ModelFit): string {
  if (ranks === undefined) return "does not hold it, nor do 8";
  const room = `with room for about ${kvTokens} tokens of all sequences together`;
  return ranks === 1
    ? `runs it, ${room}`
    : `does not hold it, ${ranks} do (--tensor-parallel-size ${ranks}), ${room}`;
}
