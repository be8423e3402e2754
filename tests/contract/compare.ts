import type { FloatDType } from "../../src/base/dtype.ts";
import { FLOAT8_VALUES, toFloat8 } from "../../src/base/float8.ts";

/** A reference result in float64. */
export interface Expected {
  readonly values: Float64Array;
  /** Sum of the absolute terms that each value was summed from: what rounding errors are relative to. */
  readonly magnitudes: Float64Array;
}

export interface Precision {
  /** The output's dtype. */
  readonly dtype: FloatDType;
  /** Terms of the longest sum, accumulated in float32. */
  readonly reduction: number;
  /** Roundings of intermediate terms to `dtype` that an implementation may make. Default 0. */
  readonly intermediates?: number;
}

/** The largest relative error of rounding to `dtype`. */
export function roundoff(dtype: FloatDType): number {
  return ROUNDOFF[dtype];
}

const ROUNDOFF: Record<FloatDType, number> = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };

/** Spacing of the values next to zero, at which rounding is no longer relative. */
const SMALLEST: Record<FloatDType, number> = { float32: 2 ** -126, bfloat16: 2 ** -126, float16: 2 ** -24 };

/**
 * Throws unless every element is within its tolerance: two roundings of the result, `intermediates` roundings of the
 * terms, and float32 accumulation errors, which grow with the square root of the sum's length.
 */
export function expectClose(
  label: string,
  actual: Float32Array,
  expected: Expected,
  precision: Precision,
): void {
  let worst = { excess: 1, message: "" };
  if (actual.length !== expected.values.length) throw new Error(`${label}: ${actual.length} elements`);
  for (let i = 0; i < actual.length; i++) {
    const got = actual[i]!;
    const want = expected.values[i]!;
    if (Object.is(got, want) || got === want) continue;
    const tolerance = toleranceOf(want, expected.magnitudes[i]!, precision);
    const error = Math.abs(got - want);
    const excess = Number.isFinite(error) ? error / tolerance : Infinity;
    if (excess > worst.excess) {
      worst = { excess, message: `${label}[${i}] is ${got}, expected ${want} ± ${tolerance}` };
    }
  }
  if (worst.message !== "") throw new Error(`${worst.message} (worst of ${actual.length} elements)`);
}

function toleranceOf(
  want: number,
  magnitude: number,
  { dtype, reduction, intermediates = 0 }: Precision,
): number {
  const accumulation = 8 * Math.sqrt(reduction) * roundoff("float32");
  const rounding = roundoff(dtype) * (2 * Math.abs(want) + intermediates * magnitude);
  return rounding + accumulation * magnitude + SMALLEST[dtype];
}

/** Throws unless every element is what float8_e4m3 makes of a value that is as close to the expected one as `expectClose` asks. */
export function expectFloat8(
  label: string,
  actual: Float32Array,
  expected: Expected,
  precision: Precision,
): void {
  for (let i = 0; i < actual.length; i++) {
    const got = actual[i]!;
    const want = expected.values[i]!;
    if (got === want || (Number.isNaN(got) && Number.isNaN(want))) continue;
    const tolerance = toleranceOf(want, expected.magnitudes[i]!, precision);
    const low = FLOAT8_VALUES[toFloat8(want - tolerance)]!;
    const high = FLOAT8_VALUES[toFloat8(want + tolerance)]!;
    if (!(low <= got && got <= high))
      throw new Error(`${label}[${i}] is ${got}, expected ${want} rounded to ${low} to ${high}`);
  }
}

/** Throws at the first element that differs; NaN equals NaN. */
export function expectEqual(label: string, actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  if (actual.length !== expected.length) {
    throw new Error(`${label}: ${actual.length} elements, expected ${expected.length}`);
  }
  for (let i = 0; i < actual.length; i++) {
    if (actual[i] === expected[i] || (Number.isNaN(actual[i]) && Number.isNaN(expected[i]))) continue;
    throw new Error(`${label}[${i}] is ${actual[i]}, expected ${expected[i]}`);
  }
}
