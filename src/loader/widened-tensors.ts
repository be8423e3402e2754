import { dtypeSize, type FloatDType } from "../base/dtype.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import { isBlockType } from "../gguf/dequantize.ts";
import type { Checkpoint } from "./checkpoint.ts";

/**
 * The tensors of a GGUF file whose blocks become floats; undefined where there are none. A rank that holds a part of a tensor counts all
 * of it.
 * @param dtype of parameters that have none of their own
 */
export function widenedTensors(
  { tensors }: Checkpoint,
  parameters: readonly ParameterSpec[],
  dtype: FloatDType,
): WeightSummary["widened"] {
  const types = new Map<string, number>();
  for (const { sources, dtype: own = dtype } of parameters) {
    for (const { name, reading } of sources) {
      const stored = tensors.get(name);
      if (reading !== undefined || stored === undefined || !isBlockType(stored.dtype)) continue;
      const elements = stored.shape.reduce((product, extent) => product * extent, 1);
      types.set(stored.dtype, (types.get(stored.dtype) ?? 0) + elements * dtypeSize(own));
    }
  }
  if (types.size === 0) return undefined;
  const largest = [...types].sort(([, a], [, b]) => b - a);
  return {
    types: largest.map(([type]) => type).join(", "),
    bytes: largest.reduce((sum, [, bytes]) => sum + bytes, 0),
  };
}
