import type { Tensor } from "../../backend/tensor.ts";
import {
  type Fp8Weight,
  factorsOf,
  type GroupedWeight,
  MXFP4_GROUP,
  type Mxfp4Weight,
  SUPERBLOCK,
  type SuperblockWeight,
} from "../../backend/weight.ts";
import type { ParameterSource, ParameterSpec } from "../../base/parameter-spec.ts";

/** Gives the parameter that a spec describes. */
export type GetParameter = (spec: ParameterSpec) => Tensor;

/** Of random float8 codes, which have standard deviation 1, and of random codes of integers: deviations of some 0.02 result. */
const DUMMY_FLOAT8_SCALE = 0.02;
const DUMMY_SCALES = { 4: 0.0045, 8: 0.00027 } as const;

export interface Float8Sources {
  readonly codes: readonly ParameterSource[];
  readonly scales: readonly ParameterSource[];
}

/** An `Fp8Weight` [n, k] of its parameters. @param name of the matrix */
export function float8Weight(
  get: GetParameter,
  name: string,
  { shape, blockRows, blockColumns }: Pick<Fp8Weight, "shape" | "blockRows" | "blockColumns">,
  sources: Float8Sources,
): Fp8Weight {
  const [n, k] = shape;
  return {
    ...{ format: "fp8", shape, blockRows, blockColumns },
    data: get({
      ...{
        name: `${name}.weight`,
        shape: [n, k],
        dtype: "float8_e4m3",
        sources: sources.codes,
        dummy: "normal",
      },
    }),
    scales: get({
      ...{ name: `${name}.scales`, shape: [Math.ceil(n / blockRows), Math.ceil(k / blockColumns)] },
      ...{ dtype: "float32", sources: sources.scales, dummy: DUMMY_FLOAT8_SCALE },
    }),
  };
}

/** Makes random codes of e2m1, whose deviation is 3, ones of some 0.02. */
const DUMMY_MXFP4_SCALE = 120;

/** An `Mxfp4Weight` [n, k] of its parameters. @param name of the matrix */
export function mxfp4Weight(
  get: GetParameter,
  name: string,
  shape: readonly [n: number, k: number],
  sources: Float8Sources,
): Mxfp4Weight {
  const [n, k] = shape;
  const bytes = (part: string, columns: number, from: readonly ParameterSource[], dummy: "normal" | number) =>
    get({ name: `${name}.${part}`, shape: [n, columns], dtype: "uint8", sources: from, dummy });
  return {
    ...{ format: "mxfp4", shape },
    data: bytes("weight", k / 2, sources.codes, "normal"),
    scales: bytes("scales", k / MXFP4_GROUP, sources.scales, DUMMY_MXFP4_SCALE),
  };
}

export type SuperblockForm = Pick<SuperblockWeight, "bits" | "groupSize" | "minima">;

export interface SuperblockSources {
  readonly codes: readonly ParameterSource[];
  readonly steps: readonly ParameterSource[];
  readonly units: readonly ParameterSource[];
}

/** A `SuperblockWeight` [n, k] of its parameters. @param name of the matrix */
export function superblockWeight(
  get: GetParameter,
  name: string,
  shape: readonly [n: number, k: number],
  form: SuperblockForm,
  { codes, steps, units }: SuperblockSources,
): SuperblockWeight {
  const [n, k] = shape;
  const factors = factorsOf(form);
  // No config alone says that a checkpoint has superblocks, so what dummies are does not matter.
  return {
    ...{ format: "superblocks", shape, ...form },
    data: get({
      ...{ name: `${name}.weight`, shape: [n, (k * form.bits) / 8], dtype: "uint8" },
      ...{ sources: codes, dummy: "normal" },
    }),
    steps: get({
      ...{ name: `${name}.steps`, shape: [n, k / form.groupSize, factors], dtype: "uint8" },
      ...{ sources: steps, dummy: "ones" },
    }),
    units: get({
      ...{ name: `${name}.units`, shape: [n, k / SUPERBLOCK, factors], dtype: "float16" },
      ...{ sources: units, dummy: "ones" },
    }),
  };
}

export interface GroupedForm extends Pick<GroupedWeight, "shape" | "bits" | "groupSize"> {
  readonly scaleDtype: "float16" | "bfloat16";
}

export interface GroupedSources {
  readonly codes: readonly ParameterSource[];
  readonly scales: readonly ParameterSource[];
  readonly zeros: readonly ParameterSource[] | undefined;
  readonly permutation: ParameterSource | undefined;
}

/** A `GroupedWeight` [n, k] of its parameters. @param name of the matrix */
export function groupedWeight(
  get: GetParameter,
  name: string,
  { shape, bits, groupSize, scaleDtype }: GroupedForm,
  { codes, scales, zeros, permutation }: GroupedSources,
): GroupedWeight {
  const [n, k] = shape;
  const groups = [n, k / groupSize];
  return {
    ...{ format: "grouped", shape, bits, groupSize },
    data: get({
      ...{
        name: `${name}.weight`,
        shape: [n, (k * bits) / 8],
        dtype: "uint8",
        sources: codes,
        dummy: "normal",
      },
    }),
    scales: get({
      ...{
        name: `${name}.scales`,
        shape: groups,
        dtype: scaleDtype,
        sources: scales,
        dummy: DUMMY_SCALES[bits],
      },
    }),
    zeros:
      zeros &&
      get({
        ...{ name: `${name}.zeros`, shape: groups, dtype: "uint8", sources: zeros, dummy: 2 ** (bits - 1) },
      }),
    permutation:
      permutation &&
      get({
        ...{
          name: `${name}.permutation`,
          shape: [k],
          dtype: "int32",
          sources: [permutation],
          dummy: "zeros",
        },
      }),
  };
}
