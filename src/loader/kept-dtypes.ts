import type { FloatDType } from "../base/dtype.ts";
import type { ParameterSpec } from "../base/parameter-spec.ts";

/**
 * Parameters with the dtypes that they are loaded in: matrices of floats keep the checkpoint's where the backend takes it.
 * @param matrixDtypes see `Backend.matrixDtypes`
 * @param storedDtype of a tensor of the checkpoint; undefined where it is not a float
 */
export function keepDtypes(
  specs: readonly ParameterSpec[],
  matrixDtypes: readonly FloatDType[] | undefined,
  storedDtype: (name: string) => FloatDType | undefined,
): readonly ParameterSpec[] {
  return specs.map((spec) => {
    if (spec.isMatrix === undefined) return spec;
    const stored = spec.sources.map(({ name }) => storedDtype(name));
    const kept = matrixDtypes?.find((dtype) => stored.every((other) => other === dtype));
    return kept === undefined ? spec : { ...spec, dtype: kept };
  });
}
