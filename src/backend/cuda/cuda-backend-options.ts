import type { CudaCommunicatorOptions } from "./cuda-communicator.ts";
import type { GpuOpening } from "./gpu-opening.ts";

export interface CudaBackendOptions {
  /** The opening of the GPU that was begun ahead; finished by the time that `prepare` resolves. */
  readonly opening?: GpuOpening | undefined;
  /**
   * One algorithm for all products of a shape, and decode rows cut by their own length alone: a token's results are the same
   * bits whatever other tokens the batch has. Costs speed at every size. Default false.
   */
  readonly batchInvariant?: boolean;
  /**
   * Products by 8-bit floats with a scale for each output make 8-bit floats of activations, too, where the GPU multiplies them
   * (compute capability 9.0) and tokens are more than a few; see `EngineOptions.quantizeActivations`. Not with `batchInvariant`.
   * Default false.
   */
  readonly quantiseActivations?: boolean;
  /** The other ranks of a model that is divided among GPUs; see `CudaCommunicatorOptions`. */
  readonly ranks?: Pick<CudaCommunicatorOptions, "exchange" | "openNccl" | "abortNccl"> | undefined;
}
