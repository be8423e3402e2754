import type { AttentionForm } from "../../../../src/backend/attention-spec.ts";
import type { ModelShape } from "../../../../src/backend/backend.ts";
import { Compiler } from "../../../../src/backend/cuda/compiler.ts";
import { KERNEL_FOLDER, KernelLibrary } from "../../../../src/backend/cuda/kernel-library.ts";
import { KernelOps } from "../../../../src/backend/cuda/kernel-ops.ts";
import type { KernelUnit } from "../../../../src/backend/cuda/kernel-source.ts";
import { ACTIVATION_CODES } from "../../../../src/backend/cuda/ops/activation.ts";
import { ExpertsFew } from "../../../../src/backend/cuda/ops/experts-few.ts";
import { ExpertsOne } from "../../../../src/backend/cuda/ops/experts-one.ts";
import {
  expertsWeight,
  formOfExperts,
  plainForm as plainExperts,
} from "../../../../src/backend/cuda/ops/experts-product.ts";
import { ExpertsTiles } from "../../../../src/backend/cuda/ops/experts-tiles.ts";
import { ExpertsWgmma } from "../../../../src/backend/cuda/ops/experts-wgmma.ts";
import { PeerExchange } from "../../../../src/backend/cuda/ops/peer-exchange.ts";
import type { QuantisedWeight } from "../../../../src/backend/cuda/ops/quantised-form.ts";
import type { WgmmaLinear, WgmmaShape } from "../../../../src/backend/cuda/ops/wgmma-linear.ts";
import { invariantTile, wgmmaWays } from "../../../../src/backend/cuda/ops/wgmma-tiles.ts";
import { Tensor } from "../../../../src/backend/tensor.ts";
import type { Fp8Weight, GroupedWeight, SuperblockWeight } from "../../../../src/backend/weight.ts";
import type { DType, FloatDType } from "../../../../src/base/dtype.ts";
import type { Context } from "../../../../src/cuda/context.ts";
import type { KernelCompiler } from "../../../../src/cuda/nvrtc.ts";

/** Shared memory that a block of Hopper may ask for, and a multiprocessor has. */
const HOPPER_SHARED_BYTES = 227 * 1024;
const SHARED_BYTES_PER_SM = 228 * 1024;

/** The form of most models' attention. */
export function plainForm(rotaryDim: number): AttentionForm {
  const scores = { hasQueryScales: false, hasSoftCap: false, hasSinks: false };
  return { rotaryDim, ...scores, normsValues: false, readsOnly: false };
}

/** What the wrappers compile for a model; they launch nothing here. */
export function unitsOf(
  dtype: FloatDType,
  hopper: boolean,
  shape: ModelShape,
  sharedBytesPerBlock = HOPPER_SHARED_BYTES,
): KernelUnit[] {
  const unused = () => {
    throw new Error("nothing is launched");
  };
  const buffer = { byteLength: 0, address: 0, dispose: () => {} };
  const memory = { allocate: unused, allocateZeroed: () => buffer, clear: unused, copy: unused };
  const uploads = { upload: unused, encodeTensorMap: unused };
  const ranks = { size: 2, gatherColumns: unused };
  const shared = { sharedBytesPerBlock, sharedBytesPerSm: SHARED_BYTES_PER_SM };
  const gpu = { dtype, smCount: 132, ...shared, dependentLaunch: hopper, hopper, wholeLayers: true, ranks };
  const options = { ...gpu, ...memory, ...uploads };
  const alone = { ...options, ranks: undefined, quantiseActivations: true };
  const library = unusedLibrary();
  const ops = new KernelOps(library, options);
  return [
    ...ops.units(shape),
    ...new KernelOps(library, alone).units(shape),
    ...(ops.wgmmaLinear === undefined ? [] : wgmmaUnits(ops.wgmmaLinear, shape)),
    ...quantisedUnits(ops, shape),
    ...float8Units(new KernelOps(library, alone), shape),
    ...[2, 4, 8].flatMap((size) => new PeerExchange(library, dtype, { rank: 0, size }).units()),
  ];
}

/** A library that launches nothing. */
function unusedLibrary(): KernelLibrary {
  const compiler = new Compiler({} as KernelCompiler, { sourceFolder: KERNEL_FOLDER, arch: "none" });
  return new KernelLibrary({} as Context, compiler);
}

/**
 * A unit's file and macros with their values: all but the size of shared memory, which follows from the others, or those that
 * are dtypes.
 */
export function valuesOf({ file, defines = {} }: KernelUnit, sized: boolean): string[] {
  const macros = Object.entries(defines).filter(([macro]) =>
    sized ? macro !== "LINEAR_SHARED_BYTES" : /^DTYPE|FLOAT8$/.test(macro),
  );
  return [file, ...macros.map(([macro, value]) => `${file} ${macro}=${value}`)];
}

/** Few of these units that have all the values of all, though not all combinations of them. */
export function coveringUnits(
  units: readonly KernelUnit[],
  isSized: (file: string) => boolean,
): KernelUnit[] {
  const all = units.map((unit) => ({ unit, values: valuesOf(unit, isSized(unit.file)) }));
  const missing = new Set(all.flatMap(({ values }) => values));
  const chosen: KernelUnit[] = [];
  while (missing.size > 0) {
    const gains = all.map(({ values }) => values.filter((value) => missing.has(value)).length);
    const best = all[gains.indexOf(Math.max(...gains))]!;
    chosen.push(best.unit);
    for (const value of best.values) missing.delete(value);
  }
  return chosen;
}

/** Those of experts in floats that have a kernel of Hopper's, in both dtypes. */
export function wgmmaExpertUnits(): KernelUnit[] {
  const forms = { gateUp: plainExperts("dense"), down: plainExperts("dense") };
  return (["bfloat16", "float16"] as const).flatMap((dtype) =>
    new ExpertsWgmma(unusedLibrary(), dtype, {}).units(forms),
  );
}

/** Those of experts in integers, of one size of tile: the others are for other formats, too. */
export function integerExpertUnits(): KernelUnit[] {
  const library = unusedLibrary();
  const [count, hiddenSize, intermediateSize] = [8, 256, 128];
  return WEIGHTS.flatMap((make, i) => {
    const weight = make(2 * count * intermediateSize, hiddenSize);
    if (weight.format !== "grouped") return [];
    const dtype = i % 2 === 0 ? "bfloat16" : "float16";
    const form = formOfExperts(expertsWeight(weight));
    const forms = { gateUp: form, down: form };
    return [
      ...new ExpertsOne(library, dtype, { smCount: 132 }).units(count, hiddenSize, intermediateSize, forms),
      ...new ExpertsFew(library, dtype, {}).units(hiddenSize, intermediateSize, forms),
      ...new ExpertsTiles(library, dtype, {}).units(forms).slice(-1),
    ];
  });
}

type MakeWeight = (outputs: number, inputs: number) => QuantisedWeight;
const NOWHERE = { byteLength: 2 ** 40, address: 0, dispose: () => {} };
const nothing = (dtype: DType, ...shape: number[]) => new Tensor(NOWHERE, dtype, shape);

/** Weights without memory, of each kind of code, of scale and of group. */
const WEIGHTS: readonly MakeWeight[] = [
  (n, k) => float8(n, k, { blockRows: 1, blockColumns: k }),
  (n, k) => float8(n, k, { blockRows: 64, blockColumns: 128 }),
  (n, k) => integers(n, k, { bits: 4, groupSize: 128, zeros: true }),
  (n, k) => integers(n, k, { bits: 4, groupSize: 32, scaleDtype: "bfloat16" }),
  (n, k) => integers(n, k, { bits: 8, groupSize: 64, zeros: true }),
  (n, k) => superblocks(n, k, { bits: 4, groupSize: 32, minima: true }),
  (n, k) => superblocks(n, k, { bits: 8, groupSize: 16, minima: false }),
];

function float8(n: number, k: number, blocks: Pick<Fp8Weight, "blockRows" | "blockColumns">): Fp8Weight {
  const scales = nothing("float32", Math.ceil(n / blocks.blockRows), Math.ceil(k / blocks.blockColumns));
  return { format: "fp8", shape: [n, k], data: nothing("float8_e4m3", n, k), scales, ...blocks };
}

interface Integers {
  readonly bits: 4 | 8;
  readonly groupSize: number;
  readonly zeros?: boolean;
  readonly scaleDtype?: FloatDType;
}

function integers(n: number, k: number, options: Integers): GroupedWeight {
  const { bits, groupSize, zeros = false, scaleDtype = "float16" } = options;
  const groups = k / groupSize;
  return {
    ...{ format: "grouped", shape: [n, k], bits, groupSize, data: nothing("uint8", n, (k * bits) / 8) },
    scales: nothing(scaleDtype, n, groups),
    zeros: zeros ? nothing("uint8", n, groups) : undefined,
  };
}

function superblocks(
  n: number,
  k: number,
  form: Pick<SuperblockWeight, "bits" | "groupSize" | "minima">,
): SuperblockWeight {
  const factors = form.minima ? 2 : 1;
  return {
    ...{ format: "superblocks", shape: [n, k], ...form, data: nothing("uint8", n, (k * form.bits) / 8) },
    steps: nothing("uint8", n, k / form.groupSize, factors),
    units: nothing("float16", n, k / 256, factors),
  };
}

/** Products by weights of each form, by one of the sizes: others make hardly any other kernels. */
function quantisedUnits(ops: KernelOps, { hiddenSize, intermediateSize }: ModelShape): KernelUnit[] {
  if (hiddenSize !== 1024) return [];
  return WEIGHTS.flatMap((make) => {
    const up = { outFeatures: 2 * intermediateSize, inFeatures: hiddenSize, norm: true, gated: true };
    const gate = { ...up, floatOut: false, activation: ACTIVATION_CODES.silu };
    const down = { outFeatures: hiddenSize, inFeatures: intermediateSize, norm: false, gated: false };
    const head = { ...down, floatOut: true, activation: -1 };
    const [gates, heads] = [make(up.outFeatures, hiddenSize), make(hiddenSize, intermediateSize)];
    const ofTokens = (tokens: number) => [
      ...ops.quantised.unitsOf({ ...gate, tokens }, gates),
      ...ops.quantised.unitsOf({ ...head, tokens }, heads),
    ];
    return [...ofTokens(1), ...ops.quantised.unitsOf({ ...gate, tokens: 64 }, gates), ...ofTokens(16)];
  });
}

/** Products of activations in eight bits, in each kind of tile. */
function float8Units(ops: KernelOps, { hiddenSize, intermediateSize }: ModelShape): KernelUnit[] {
  if (hiddenSize !== 1024) return [];
  const down = { outFeatures: hiddenSize, inFeatures: intermediateSize, norm: false, gated: false };
  const weight = WEIGHTS[0]!(hiddenSize, intermediateSize);
  const plain = { ...down, floatOut: false, activation: -1 };
  return [16, 128, 256, 1000].flatMap((tokens) => ops.quantised.unitsOf({ ...plain, tokens }, weight));
}

/** One token count of each kind of tile: all of them would take as long to compile as everything else. */
function wgmmaUnits(wgmma: WgmmaLinear, { hiddenSize, intermediateSize }: ModelShape): KernelUnit[] {
  const plain = { norm: false, gated: false, activation: -1, floatOut: false };
  const gate = { outFeatures: 2 * intermediateSize, inFeatures: hiddenSize, norm: true, gated: true };
  const shapes: readonly WgmmaShape[] = [
    { ...plain, ...gate, activation: ACTIVATION_CODES.silu },
    { ...plain, outFeatures: hiddenSize, inFeatures: intermediateSize },
    { ...plain, outFeatures: hiddenSize, inFeatures: intermediateSize, floatOut: true, activation: 1 },
  ];
  return shapes.flatMap((shape) =>
    [16, 128, 256].flatMap((tokens) => {
      const tiles = wgmmaWays(shape, tokens, 132).map(({ tile }) => tile);
      return [...tiles, invariantTile(shape, 132)].flatMap((tile) => wgmma.units(tile, shape));
    }),
  );
}
