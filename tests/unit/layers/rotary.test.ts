import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import {
  inverseFrequencies,
  queryScaleTable,
  type RopeConfig,
  type RopeScaling,
  rotaryDim,
  rotaryTable,
} from "../../../src/layers/rotary.ts";

setDefaultTimeout(300_000);

interface Case {
  readonly name: string;
  readonly headDim: number;
  readonly rope: RopeConfig;
  /** Of the engine. Default 1. */
  readonly positions?: number;
  /** Number of frequencies. */
  readonly count: number;
  /** Some of them by index, as `ROPE_INIT_FUNCTIONS` of transformers 5.23 computes them in float32. */
  readonly expected: Readonly<Record<number, number>>;
}

const NONE: RopeScaling = { kind: "none" };
const LLAMA3: RopeScaling = {
  kind: "llama3",
  factor: 8,
  lowFreqFactor: 1,
  highFreqFactor: 4,
  originalMaxPositionEmbeddings: 8192,
};

function yarn(
  factor: number,
  positions: number,
  betaFast = 32,
  betaSlow = 1,
  attentionFactor = 1,
): RopeScaling {
  return {
    kind: "yarn",
    factor,
    betaFast,
    betaSlow,
    originalMaxPositionEmbeddings: positions,
    truncate: true,
    attentionFactor,
  };
}

const DYNAMIC: RopeScaling = { kind: "dynamic", factor: 4, originalMaxPositionEmbeddings: 2048 };
const LONGROPE: RopeScaling = {
  kind: "longrope",
  shortFactors: Array.from({ length: 24 }, (_, i) => 1 + 0.02 * i),
  longFactors: Array.from({ length: 24 }, (_, i) => 1.5 + 0.75 * i),
  originalMaxPositionEmbeddings: 4096,
  attentionFactor: 1.5,
};

const CASES: readonly Case[] = [
  {
    name: "dynamic, within the positions of training",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 1, scaling: DYNAMIC },
    count: 32,
    positions: 1000,
    expected: {
      0: 1,
      1: 0.749894202,
      8: 0.100000001,
      16: 0.00999999978,
      24: 0.00100000005,
      31: 0.00013335215,
    },
  },
  {
    name: "dynamic, beyond them",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 1, scaling: DYNAMIC },
    count: 32,
    positions: 8192,
    expected: {
      0: 1,
      1: 0.690345228,
      8: 0.0515858717,
      16: 0.00266110199,
      24: 0.000137275245,
      31: 1.02578579e-5,
    },
  },
  {
    name: "longrope, within the positions of training",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 0.75, scaling: LONGROPE },
    count: 24,
    positions: 4096,
    expected: {
      0: 1,
      1: 0.667933404,
      6: 0.0892857164,
      12: 0.00806451589,
      18: 0.000735294132,
      23: 0.000100534213,
    },
  },
  {
    name: "longrope, beyond them",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 0.75, scaling: LONGROPE },
    count: 24,
    positions: 4097,
    expected: {
      0: 0.666666687,
      1: 0.302796483,
      6: 0.0166666675,
      12: 0.000952380942,
      18: 6.66666674e-5,
      23: 7.82826373e-6,
    },
  },
  {
    name: "proportional",
    headDim: 128,
    rope: { theta: 1e6, partialRotaryFactor: 0.25, scaling: { kind: "proportional", factor: 1 } },
    count: 64,

    expected: { 0: 1, 1: 0.805842221, 16: 0, 32: 0, 63: 0 },
  },
  {
    name: "proportional with a factor",
    headDim: 128,
    rope: { theta: 1e6, partialRotaryFactor: 0.5, scaling: { kind: "proportional", factor: 8 } },
    count: 64,

    expected: { 0: 0.125, 1: 0.100730278, 16: 0.00395284733, 32: 0, 63: 0 },
  },
  {
    name: "yarn between whole pairs",
    headDim: 64,
    rope: {
      theta: 150000,
      partialRotaryFactor: 1,
      scaling: { ...yarn(32, 4096), truncate: false } as RopeScaling,
    },
    count: 32,

    expected: {
      0: 1,
      1: 0.689044297,
      8: 0.0508132726,
      16: 0.000456483918,
      24: 4.09997847e-6,
      31: 3.0235114e-7,
    },
  },
  {
    name: "yarn at whole pairs",
    headDim: 64,
    rope: { theta: 150000, partialRotaryFactor: 1, scaling: yarn(32, 4096) },
    count: 32,

    expected: {
      0: 1,
      1: 0.689044297,
      8: 0.0508132726,
      16: 0.000580947497,
      24: 4.09997847e-6,
      31: 3.0235114e-7,
    },
  },
  {
    name: "default",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 1, scaling: NONE },
    count: 32,
    expected: {
      0: 1,
      1: 0.749894202,
      8: 0.100000001,
      16: 0.00999999978,
      24: 0.00100000005,
      31: 0.00013335215,
    },
  },
  {
    name: "partial",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 0.5, scaling: NONE },
    count: 16,
    expected: {
      0: 1,
      1: 0.562341332,
      4: 0.100000001,
      8: 0.00999999978,
      12: 0.00100000005,
      15: 0.00017782794,
    },
  },
  {
    name: "linear",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 1, scaling: { kind: "linear", factor: 4 } },
    count: 32,
    expected: { 0: 0.25, 1: 0.18747355, 8: 0.0250000004, 16: 0.00249999994, 31: 3.33380376e-5 },
  },
  {
    name: "linear and partial",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 0.25, scaling: { kind: "linear", factor: 4 } },
    count: 8,
    expected: { 0: 0.25, 1: 0.079056941, 4: 0.00249999994, 7: 7.90569466e-5 },
  },
  {
    name: "llama3",
    headDim: 128,
    rope: { theta: 5e5, partialRotaryFactor: 1, scaling: LLAMA3 },
    count: 64,
    expected: {
      0: 1,
      1: 0.814617217,
      16: 0.0376060307,
      32: 0.000524846022,
      48: 6.64786967e-6,
      63: 3.06892588e-7,
    },
  },
  {
    name: "yarn",
    headDim: 128,
    rope: { theta: 1e6, partialRotaryFactor: 1, scaling: yarn(4, 32768) },
    count: 64,
    expected: {
      0: 1,
      1: 0.805842221,
      16: 0.0316227786,
      32: 0.000602941145,
      48: 7.90569356e-6,
      63: 3.10234441e-7,
    },
  },
  {
    name: "yarn with its own betas",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 1, scaling: yarn(16, 4096, 16, 2) },
    count: 32,
    expected: { 0: 1, 1: 0.749894202, 8: 0.100000001, 16: 0.00583333336, 24: 6.2500003e-5, 31: 8.3345094e-6 },
  },
  {
    name: "yarn and partial",
    headDim: 64,
    rope: { theta: 1e4, partialRotaryFactor: 0.5, scaling: yarn(4, 2048) },
    count: 16,
    expected: {
      0: 1,
      1: 0.562341332,
      4: 0.100000001,
      8: 0.00571428565,
      12: 0.000250000012,
      15: 4.44569851e-5,
    },
  },
];

describe("inverse frequencies", () => {
  test.each([...CASES])("$name", ({ headDim, rope, count, expected, positions = 1 }) => {
    const frequencies = inverseFrequencies(headDim, rope, positions);
    expect(frequencies).toHaveLength(count);
    expect(rotaryDim(headDim, rope)).toBe(2 * count);
    for (const [index, value] of Object.entries(expected))
      expect(Math.abs(frequencies[Number(index)]! - value)).toBeLessThanOrEqual(1e-6 * value);
  });

  test("an odd number of rotated dimensions loses one", () => {
    expect(rotaryDim(10, { theta: 1e4, partialRotaryFactor: 0.5, scaling: NONE })).toBe(4);
  });
});

describe("the table of cosines and sines", () => {
  function table(rope: RopeConfig, headDim: number, positions: number): Float32Array {
    const backend = new CpuBackend();
    const tensor = rotaryTable(backend, headDim, positions, rope);
    expect(tensor.shape).toEqual([positions, rotaryDim(headDim, rope)]);
    const bytes = backend.download(tensor).slice();
    backend.dispose();
    return new Float32Array(bytes.buffer);
  }

  test("a row holds the cosines of its position's angles, then their sines", () => {
    const rope: RopeConfig = { theta: 1e4, partialRotaryFactor: 1, scaling: NONE };
    const values = table(rope, 8, 3);
    const [c, s] = [Math.cos, Math.sin];
    const row = [c(2), c(0.2), c(0.02), c(0.002), s(2), s(0.2), s(0.02), s(0.002)];
    for (const [i, value] of row.entries()) expect(values[16 + i]!).toBeCloseTo(value, 6);
    expect([...values.subarray(0, 8)]).toEqual([1, 1, 1, 1, 0, 0, 0, 0]);
  });

  test("longrope's attention factor scales both, and its factors are those of the table's positions", () => {
    const rope: RopeConfig = { theta: 1e4, partialRotaryFactor: 0.75, scaling: LONGROPE };
    for (const [positions, factor] of [
      [4096, 1],
      [4097, 1.5],
    ] as const) {
      const values = table(rope, 64, positions);
      expect(values[48]!).toBeCloseTo(1.5 * Math.cos(1 / factor), 5);
      expect(values[48 + 24]!).toBeCloseTo(1.5 * Math.sin(1 / factor), 5);
    }
  });

  test("pairs of a proportional rope that do not turn stay as they are", () => {
    const rope: RopeConfig = {
      ...{ theta: 1e4, partialRotaryFactor: 0.5 },
      scaling: { kind: "proportional", factor: 1 },
    };
    expect([...table(rope, 8, 6).subarray(40)].map((value) => +value.toFixed(6))).toEqual(
      [Math.cos(5), Math.cos(0.5), 1, 1, Math.sin(5), Math.sin(0.5), 0, 0].map((value) => +value.toFixed(6)),
    );
  });

  test("yarn's attention factor scales both", () => {
    const scaling = (factor: number) => ({
      ...{ theta: 1e6, partialRotaryFactor: 1 },
      scaling: yarn(4, 32768, 32, 1, factor),
    });
    const plain = table(scaling(1), 128, 2);
    const scaled = table(scaling(1.138629436111989), 128, 2);
    for (const [i, value] of plain.entries()) expect(scaled[i]!).toBeCloseTo(1.138629436111989 * value, 6);
  });

  test("angles far out are those of float32 products", () => {
    const rope: RopeConfig = { theta: 1e4, partialRotaryFactor: 1, scaling: NONE };
    const values = table(rope, 64, 8192);
    const angle = Math.fround(8191 * Math.fround(1e4 ** (-2 / 64)));
    expect(values[8191 * 64 + 1]!).toBe(Math.fround(Math.cos(angle)));
  });
});

test("scales of queries grow with each stretch of the positions of training", () => {
  const backend = new CpuBackend();
  const scaling = { beta: 0.1, originalMaxPositionEmbeddings: 16384 };
  const bytes = backend.download(queryScaleTable(backend, 262144, scaling)).slice();
  backend.dispose();
  const values = new Float32Array(bytes.buffer);
  // As transformers 5.24 computes them for Ministral 3.
  const expected = { 0: 1, 100: 1, 16383: 1, 16384: 1.06931472, 32768: 1.10986125, 262143: 1.27725887 };
  for (const [position, scale] of Object.entries(expected))
    expect(Math.abs(values[Number(position)]! - scale)).toBeLessThan(2e-7);
});
