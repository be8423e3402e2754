import { byteLengthOf } from "../backend/tensor.ts";
import type { Weight } from "../backend/weight.ts";
import type { DType, FloatDType } from "../base/dtype.ts";
import type { WeightSummary } from "../base/weight-summary.ts";
import type { ModelDefinition } from "./model.ts";

/**
 * @param dtype of parameters that have none of their own: that of activations
 * @param parameters as they are loaded
 */
export function summaryOf(
  { matrices, ...definition }: ModelDefinition,
  dtype: FloatDType,
  parameters = definition.parameters,
): WeightSummary {
  const dense = parameters.find(({ isMatrix }) => isMatrix)?.dtype ?? dtype;
  const sizes = new Map<string, number>();
  for (const matrix of matrices) {
    const format = formatOf(matrix, dense);
    sizes.set(format, (sizes.get(format) ?? 0) + matrix.shape[0] * matrix.shape[1]);
  }
  const formats = [...sizes].sort(([, a], [, b]) => b - a).map(([format]) => format);
  return {
    format: formats.join(", "),
    bytes: parameters.reduce((sum, spec) => sum + byteLengthOf(spec.dtype ?? dtype, spec.shape), 0),
  };
}

/** @param dense dtype of matrices in floats */
function formatOf(weight: Weight, dense: DType): string {
  switch (weight.format) {
    case "dense":
      return dense;
    case "fp8":
      return weight.blockColumns < weight.shape[1] || weight.blockRows > 1
        ? "fp8 in blocks of 128"
        : "fp8 by channels";
    case "mxfp4":
      return "mxfp4";
    case "superblocks": {
      const { bits, groupSize, minima } = weight;
      const extras = minima ? " with minima" : "";
      return `int${bits === 8 ? 6 : 4} in groups of ${groupSize} of superblocks${extras}`;
    }
    case "grouped": {
      const { bits, groupSize, shape, zeros, permutation } = weight;
      const groups = groupSize === shape[1] ? "by channels" : `in groups of ${groupSize}`;
      const extras = [zeros && "zero points", permutation && "an order of columns"].filter(Boolean);
      return [`int${bits} ${groups}`, ...(extras.length > 0 ? [`with ${extras.join(" and ")}`] : [])].join(
        " ",
      );
    }
  }
}
