import type { FloatDType } from "../base/dtype.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { StoredScheme } from "../layers/schemes/stored-scheme.ts";
import { Checkpoint } from "../loader/checkpoint.ts";
import { directoryOf } from "../loader/tensor-directory.ts";
import { readModelConfig } from "../models/config.ts";
import { defineModel } from "../models/registry.ts";
import { summaryOf } from "../models/weight-summary.ts";
import { skippedTensors } from "./skipped-tensors.ts";

/**
 * The weights that a model folder or a GGUF file holds, as they would be loaded onto one device; nothing is loaded.
 * @param dtype of activations, in which weights in floats are kept. Default: the checkpoint's
 * @throws ModelNotFoundError, ModelDataError
 */
export function inspectWeights(folder: string, dtype?: FloatDType): WeightSummary {
  const config = readModelConfig(folder);
  using checkpoint = Checkpoint.open(folder);
  const { quantisation } = config;
  const scheme = new StoredScheme(directoryOf(checkpoint), { gptqZeros: quantisation?.gptqZeros });
  const summary = summaryOf(defineModel(config, { scheme }), dtype ?? config.dtype ?? "bfloat16");
  return { ...summary, skipped: skippedTensors(checkpoint, config) };
}
