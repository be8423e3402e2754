import type { WeightSummary } from "../base/weight-summary.ts";
import type { Checkpoint } from "../loader/checkpoint.ts";
import type { ModelConfig } from "../models/config.ts";
import { MTP, TOWERS } from "../models/text-config.ts";

/**
 * The tensors of a checkpoint besides its language model: of a multimodal one, and of layers that guess further tokens; undefined where
 * there are none.
 */
export function skippedTensors(
  checkpoint: Checkpoint,
  { isTextPart }: ModelConfig,
): WeightSummary["skipped"] {
  const others = isTextPart ? TOWERS : MTP;
  const skipped = [...checkpoint.tensors].filter(([name]) => others.test(name)).map(([, tensor]) => tensor);
  if (!isTextPart && skipped.length === 0) return undefined;
  return { tensors: skipped.length, bytes: skipped.reduce((sum, { begin, end }) => sum + end - begin, 0) };
}
