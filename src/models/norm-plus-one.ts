import { RmsNorm } from "../layers/norm.ts";
import type { Parameters } from "../layers/parameters.ts";

/** A norm whose checkpoint has what its weight is more than 1. */
export function normPlusOne(
  parameters: Parameters,
  name: string,
  source: string,
  size: number,
  eps: number,
): RmsNorm {
  return new RmsNorm(parameters, name, source, size, eps, { scale: 1, offset: 1 });
}
