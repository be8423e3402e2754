import type { Backend, ModelShape } from "../backend/backend.ts";
import type { EngineConfig } from "../base/config.ts";
import type { FloatDType } from "../base/dtype.ts";
import { lengthOf, type Shard, shareOf, WHOLE } from "../base/shard.ts";
import { rotaryDim } from "../layers/rotary.ts";
import { Checkpoint } from "../loader/checkpoint.ts";
import { dummyWeights } from "../loader/dummy-weights.ts";
import { loadWeights } from "../loader/weights.ts";
import type { ModelConfig } from "../models/config.ts";
import type { ModelDefinition } from "../models/model.ts";
import { defineModel } from "../models/registry.ts";
import type { Exchange } from "../ranks/exchange.ts";
import { KvPlan } from "../runner/kv-plan.ts";
import { ModelRunner } from "../runner/model-runner.ts";

/** The part of a model that one rank loads, or all of it. */
export interface PartSource {
  /** The model's folder. */
  readonly folder: string;
  readonly config: EngineConfig;
  readonly modelConfig: ModelConfig;
  readonly shard?: Shard;
}

/** Weights of a rank, on its backend. */
export interface LoadedPart {
  /**
   * Makes the runner: gives what memory is left to the KV pool. Where there are several ranks all must do so at the same time:
   * they make the way from device to device, agree through `peers` on what all have room for, and know at the end that all are
   * done.
   */
  build(peers?: Exchange): ModelRunner;
}

/**
 * Loads a rank's part of a model onto its backend.
 * @param onProgress called with bytes of this part
 * @throws ModelNotFoundError, ModelDataError, DeviceError or ConfigError
 */
export async function loadPart(
  { folder, config, modelConfig, shard = WHOLE }: PartSource,
  backend: Backend,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
): Promise<LoadedPart> {
  const definition = defineModel(modelConfig, { shard });
  const kernels = backend.prepare?.(modelShape(modelConfig, config, shard));
  kernels?.catch(() => {}); // Reported where it is awaited, unless the weights fail first.
  // Dense weights are multiplied, and keys and values attended to, in the dtype of the activations.
  const [weightDtype, kvDtype] = [backend.activationDtype, backend.activationDtype];
  const weights =
    config.loadFormat === "dummy"
      ? // Parts that are the same would give tokens that are equally likely.
        dummyWeights(definition.parameters, backend, weightDtype, config.seed + shard.rank)
      : await loadFolder(folder, definition, backend, weightDtype, onProgress);
  await kernels;
  return {
    build: (peers) => {
      backend.meetRanks?.();
      const agree = (value: number) => peers?.minimum(value) ?? value;
      const kvShape = { ...definition.kvHeads, blockSize: config.blockSize, kvDtype };
      const plan = new KvPlan(modelConfig.maxPositionEmbeddings, kvShape, config, backend);
      const maxModelLen = agree(plan.maxModelLen);
      const built = definition.build(weights, backend, maxModelLen);
      const runner = new ModelRunner(backend, built, {
        ...{ ...config, kvDtype, maxModelLen },
        planBlocks: () => agree(plan.numBlocks()),
      });
      // Whoever comes so far knows that all have.
      agree(0);
      return runner;
    },
  };
}

async function loadFolder(
  folder: string,
  definition: ModelDefinition,
  backend: Backend,
  dtype: FloatDType,
  onProgress: (loadedBytes: number, totalBytes: number) => void,
) {
  using checkpoint = Checkpoint.open(folder);
  const options = { dtype, ignored: definition.ignored, onProgress };
  return await loadWeights(checkpoint, definition.parameters, backend, options);
}

/** The sizes of a rank's part. */
function modelShape(model: ModelConfig, { blockSize }: EngineConfig, shard: Shard): ModelShape {
  const part = (count: number) => lengthOf(shareOf(count, shard));
  return {
    ...model,
    vocabSize: part(model.vocabSize),
    intermediateSize: part(model.intermediateSize),
    numHeads: part(model.numHeads),
    numKvHeads: part(model.numKvHeads),
    ...{ rotaryDim: rotaryDim(model.headDim, model.rope), blockSize },
  };
}
