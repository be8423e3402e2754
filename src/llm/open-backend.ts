import type { Backend } from "../backend/backend.ts";
import { CpuBackend } from "../backend/cpu/cpu-backend.ts";
import { SharedMemoryCommunicator } from "../backend/cpu/shared-memory-communicator.ts";
import { CudaBackend } from "../backend/cuda/cuda-backend.ts";
import { GpuOpening, type Rehearsal } from "../backend/cuda/gpu-opening.ts";
import type { EngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { ConfigError } from "../base/errors.ts";
import { gpuCount, openCuda } from "../cuda/open-cuda.ts";
import type { ModelConfig } from "../models/config.ts";
import type { Exchange } from "../ranks/exchange.ts";

/** Tokens of a product that is computed for nothing: enough for the kernels of large ones. */
const REHEARSED_TOKENS = 2 ** 14;

export type OpenBackend = (
  config: EngineConfig,
  model: ModelConfig,
  peers?: Exchange,
) => Backend | Promise<Backend>;

/**
 * The GPU if there is one and it is not refused, else the CPU. Opening a GPU leaves this thread free meanwhile.
 * @param peers the way to the other ranks, where there are any: on the CPU only
 */
export async function createBackend(
  config: EngineConfig,
  model: ModelConfig,
  peers?: Exchange,
): Promise<Backend> {
  const { device, dtype, batchInvariant } = config;
  if (peers !== undefined && (device === "cuda" || (device === "auto" && gpuCount() > 0))) {
    const message = `tensorParallelSize ${config.tensorParallelSize} needs device: "cpu": several GPUs are not supported yet`;
    throw new ConfigError("tensorParallelSize", message);
  }
  const opening =
    device === "cpu" || peers !== undefined ? undefined : GpuOpening.begin(rehearsal(config, model));
  try {
    await opening?.opened;
    if (device === "cuda" || (device === "auto" && gpuCount() > 0))
      return new CudaBackend(openCuda(), cudaDtype(dtype, model), { opening, batchInvariant });
  } finally {
    void opening?.finish();
  }
  if (dtype !== "auto" && dtype !== "float32")
    throw new ConfigError("dtype", `the CPU backend computes in float32; ${dtype} needs device: "cuda"`);
  return new CpuBackend(undefined, peers && new SharedMemoryCommunicator(peers));
}

/** The first product of the largest step, which a start computes first. */
function rehearsal({ dtype, maxNumBatchedTokens }: EngineConfig, model: ModelConfig): Rehearsal {
  return {
    dtype: cudaDtype(dtype, model),
    tokens: Math.min(maxNumBatchedTokens, REHEARSED_TOKENS),
    inFeatures: model.hiddenSize,
    outFeatures: (model.numHeads + 2 * model.numKvHeads) * model.headDim,
  };
}

function cudaDtype(dtype: EngineConfig["dtype"], model: ModelConfig): FloatDType {
  if (dtype !== "auto") return dtype;
  return model.dtype === "float16" ? "float16" : "bfloat16";
}
