import { availableParallelism } from "node:os";
import type { Backend } from "../backend/backend.ts";
import { CpuBackend } from "../backend/cpu/cpu-backend.ts";
import { SharedMemoryCommunicator } from "../backend/cpu/shared-memory-communicator.ts";
import { GpuOpening, type Rehearsal } from "../backend/cuda/gpu-opening.ts";
import { SimdBackend } from "../backend/simd/simd-backend.ts";
import type { EngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { ConfigError, DeviceError } from "../base/errors.ts";
import { workerScript } from "../base/program-file.ts";
import type { Aborting } from "../cuda/nccl.ts";
import type { AbortTask } from "../cuda/nccl-abort-worker.ts";
import { gpuCount, openCuda, openNccl, thisMachine } from "../cuda/open-cuda.ts";
import type { ModelConfig } from "../models/config.ts";
import type { Exchange } from "../ranks/exchange.ts";

const NCCL_ABORT_WORKER = workerScript("src/cuda/nccl-abort-worker.ts");
/** Longest wait for NCCL's abort, which waits for ranks that may be stuck. */
const ABORT_MS = 1000;
/** Tokens of a product that is computed for nothing: enough for the kernels of large ones. */
const REHEARSED_TOKENS = 2 ** 14;

export type OpenBackend = (
  config: EngineConfig,
  model: ModelConfig,
  peers?: Exchange,
) => Backend | Promise<Backend>;

/**
 * The GPU if there is one and it is not refused, else the CPU; a rank's own GPU where there are several. Opening it leaves this
 * thread free meanwhile.
 * @param peers the way to the other ranks, where there are any: nobody waits for them here
 */
export async function createBackend(
  config: EngineConfig,
  model: ModelConfig,
  peers?: Exchange,
): Promise<Backend> {
  const { device, dtype, batchInvariant, quantizeActivations: quantiseActivations } = config;
  const isCpu = device === "cpu" || device === "cpu-reference";
  const gpuIndex = config.gpuIndex + (peers?.shard.rank ?? 0);
  const opening = isCpu ? undefined : GpuOpening.begin(gpuIndex, rehearsal(config, model));
  const loading = opening && cudaBackend();
  try {
    await opening?.opened;
    if (device === "cuda" || (device === "auto" && gpuCount() > 0)) {
      if (peers !== undefined) checkGpus(config);
      const { CudaBackend } = await (loading ?? cudaBackend());
      const cuda = openCuda(gpuIndex);
      const ranks = peers && {
        exchange: peers,
        openNccl: () => openNccl(thisMachine(), cuda.driver.version[0]).api,
        abortNccl: (comm: number) => abortElsewhere({ comm, driverMajor: cuda.driver.version[0] }),
      };
      return new CudaBackend(cuda, cudaDtype(dtype, model), {
        opening,
        batchInvariant,
        quantiseActivations,
        ranks,
      });
    }
  } finally {
    void opening?.finish();
  }
  if (dtype !== "auto" && dtype !== "float32")
    throw new ConfigError("dtype", `the CPU backend computes in float32; ${dtype} needs device: "cuda"`);
  const communicator = peers && new SharedMemoryCommunicator(peers);
  if (device === "cpu-reference") return new CpuBackend(undefined, communicator);
  const { threads = availableParallelism(), cpuKernels, tensorParallelSize } = config;
  const share = Math.max(1, Math.floor(threads / tensorParallelSize));
  const backend = new SimdBackend({ threads: share, kernels: cpuKernels, communicator });
  // The LM head's product, while the tokenizer and the weights are loaded.
  backend.startThreads(model.hiddenSize * model.vocabSize);
  return backend;
}

/** Its modules take 20 ms to load: that is done while the GPU opens, and not without one. */
function cudaBackend() {
  return import("../backend/cuda/cuda-backend.ts");
}

function abortElsewhere(task: Omit<AbortTask, "returned">): Aborting {
  const returned = new SharedArrayBuffer(4);
  new Worker(NCCL_ABORT_WORKER, { ref: false }).postMessage({ ...task, returned } satisfies AbortTask);
  return { join: () => void Atomics.wait(new Int32Array(returned), 0, 0, ABORT_MS) };
}

/** @throws DeviceError when there are fewer GPUs than ranks, but for none at all: opening one says why. */
function checkGpus({ gpuIndex, tensorParallelSize }: EngineConfig): void {
  const count = gpuCount();
  if (count === 0 || gpuIndex + tensorParallelSize <= count) return;
  const [usable, from] = [
    Math.max(0, count - gpuIndex),
    gpuIndex === 0 ? "" : ` from gpuIndex ${gpuIndex} on`,
  ];
  const message = `tensorParallelSize ${tensorParallelSize} takes as many GPUs; the driver shows ${usable}${from}`;
  throw new DeviceError(message);
}

/** The first product of the largest step, which a start computes first. */
function rehearsal(config: EngineConfig, model: ModelConfig): Rehearsal {
  const { dtype, maxNumBatchedTokens, tensorParallelSize } = config;
  return {
    dtype: cudaDtype(dtype, model),
    tokens: Math.min(maxNumBatchedTokens, REHEARSED_TOKENS),
    inFeatures: model.hiddenSize,
    outFeatures: Math.ceil(((model.numHeads + 2 * model.numKvHeads) * model.headDim) / tensorParallelSize),
  };
}

function cudaDtype(dtype: EngineConfig["dtype"], model: ModelConfig): FloatDType {
  if (dtype !== "auto") return dtype;
  return model.dtype === "float16" ? "float16" : "bfloat16";
}
