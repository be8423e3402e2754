import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import {
  inverseFrequencies,
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

const CASES: readonly Case[] = [
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
  test.each([...CASES])("$name", ({ headDim, rope, count, expected }) => {
    const frequencies = inverseFrequencies(headDim, rope, 1);
    expect(frequencies).toHaveLength(count);
    expect(rotaryDim(headDim, rope)).toBe(2 * count);
    for (const [index, value] of Object.entries(expected))
      expect(Math.abs(frequencies[Number(index)]! / value - 1)).toBeLessThan(1e-6);
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
