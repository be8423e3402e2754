import type { WeightSummary } from "../base/weight-summary.ts";
import type { Checkpoint } from "../loader/checkpoint.ts";
import type { ModelConfig } from "../models/config.ts";
import { TOWERS } from "../models/text-config.ts";

/** The tensors of a multimodal checkpoint besides its language model; undefined for any other. */
export function skippedTensors(
  checkpoint: Checkpoint,
  { isTextPart }: ModelConfig,
): WeightSummary["skipped"] {
  if (!isTextPart) return undefined;
  const skipped = [...checkpoint.tensors].filter(([name]) => TOWERS.test(name)).map(([, tensor]) => tensor);
  return { tensors: skipped.length, bytes: skipped.reduce((sum, { begin, end }) => sum + end - begin, 0) };
}
