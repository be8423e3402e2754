import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import { asLoaded, type DeviceLimits, decodeLimit, requestLengths, roofline } from "../../bench/roofline.ts";
import { readWorkload } from "../../src/cli/bench/workload.ts";
import { type ModelConfig, readModelConfig } from "../../src/models/config.ts";

setDefaultTimeout(300_000);

const BENCH = join(import.meta.dir, "../../bench");
const options = { maxNumSeqs: 256, maxNumBatchedTokens: 16384 };
const small = readModelConfig(join(BENCH, "models/qwen3-0.6b"));
const large = readModelConfig(join(BENCH, "models/qwen3-8b"));
const requests = requestLengths(readWorkload(join(BENCH, "workloads/nano-vllm.json")));
const copyRate: DeviceLimits = { bytesPerSecond: 4.3e12, flopsPerSecond: 700e12 };
const readRate: DeviceLimits = { bytesPerSecond: 4.61e12, flopsPerSecond: 700e12 };

function expectWithin1Percent(actual: number, expected: number): void {
  expect(Math.abs(actual / expected - 1)).toBeLessThan(0.01);
}

describe("roofline of nano-vLLM's workload", () => {
  const cases: [string, ModelConfig, number, DeviceLimits, number][] = [
    ["0.6B", small, 2, copyRate, 36194],
    ["0.6B, 8-bit KV", small, 1, copyRate, 64085],
    ["8B", large, 2, copyRate, 12615],
    ["8B, 8-bit KV", large, 1, copyRate, 15671],
    ["0.6B at the read ceiling", small, 2, readRate, 38650],
    ["0.6B, 8-bit KV, at the read ceiling", small, 1, readRate, 68200],
    ["8B at the read ceiling", large, 2, readRate, 13270],
    ["8B, 8-bit KV, at the read ceiling", large, 1, readRate, 16400],
  ];
  for (const [name, config, kvBytes, limits, expected] of cases) {
    test(name, () => {
      expectWithin1Percent(
        roofline(config, requests, limits, { ...options, kvBytes }).tokensPerSecond,
        expected,
      );
    });
  }

  test("what it is made of", () => {
    const limit = roofline(small, requests, copyRate, options);
    expect(limit.decodeSteps).toBe(1023);
    expectWithin1Percent(limit.kvTokens, 120.66e6);
    expectWithin1Percent(limit.weightSeconds, 0.284);
    expectWithin1Percent(limit.kvSeconds, 3.222);
    expectWithin1Percent(limit.prefillSeconds, 0.196);
    expect(limit.seconds).toBeCloseTo(limit.weightSeconds + limit.kvSeconds + limit.prefillSeconds, 9);
  });
});

describe("roofline", () => {
  test("quantised weights of the layers are read in fewer bytes, the LM head's are not", () => {
    const seconds = (config: ModelConfig) =>
      roofline(config, [{ prompt: 32, output: 128 }], readRate, options).weightSeconds;
    const fp8 = seconds(asLoaded(large, { quantization: "fp8" }));
    const head = (127 * large.vocabSize * large.hiddenSize * 2) / readRate.bytesPerSecond;
    // A factor of 4 bytes for each channel beside its 4,096 weights or more.
    expectWithin1Percent((fp8 - head) / (seconds(large) - head), 0.5);
    const declared = { kind: "integers", bits: 4, groupSize: 128, zeros: false } as const;
    const needs = { needsZeros: false, needsOrder: false };
    const int4 = seconds({ ...large, quantisation: { method: "gptq", gptqZeros: "v1", ...needs, declared } });
    expectWithin1Percent((int4 - head) / (seconds(large) - head), (4 + 16 / 128) / 16);
    expect(asLoaded(large, { quantization: undefined })).toBe(large);
  });

  test("prompts of activations in eight bits are at twice the rate, and so is reading a head of eight bits", () => {
    const fp8 = asLoaded(large, { quantization: "fp8" });
    const of = (config: ModelConfig, extra: object) =>
      roofline(config, [{ prompt: 1000, output: 128 }], readRate, { ...options, ...extra });
    const ratio = of(fp8, { quantizeActivations: true }).prefillSeconds / of(fp8, {}).prefillSeconds;
    expect(ratio).toBeGreaterThan(0.5);
    expect(ratio).toBeLessThan(0.55);
    expect(of(large, { quantizeActivations: true })).toEqual(of(large, {}));
    const head = (127 * large.vocabSize * large.hiddenSize) / readRate.bytesPerSecond;
    const saved = of(fp8, {}).weightSeconds - of(fp8, { quantizeLmHead: true }).weightSeconds;
    expectWithin1Percent(saved, head);
  });

  test("one stream is bound by reading the weights, its prompt's step included", () => {
    const limit = roofline(small, [{ prompt: 32, output: 128 }], readRate, options);
    expectWithin1Percent(limit.tokensPerSecond, 3870);
    expect(limit.prefillSeconds).toBeCloseTo(limit.weightSeconds / 127, 9);
    expectWithin1Percent(
      roofline(large, [{ prompt: 32, output: 128 }], readRate, options).tokensPerSecond,
      305,
    );
  });

  test("of Gemma 4 a step reads neither tables nor experts that no token chose, and layers' own heads", () => {
    const [dense, mixture] = ["gemma-4-e4b", "gemma-4-26b-a4b"].map((name) =>
      readModelConfig(join(BENCH, "models", name)),
    ) as [ModelConfig, ModelConfig];
    const bytesOf = (seconds: number) => seconds * readRate.bytesPerSecond;
    // 7.5 · 10⁹ parameters, of which a table of 262,144 × 42 × 256 and an embedding that is the head, too.
    const small = decodeLimit(dense, [100], readRate);
    expectWithin1Percent(bytesOf(small.layers + small.head), 14.926e9 - 2 * 262144 * 42 * 256);
    // 8 of 128 experts: 3 · 2,816 · 704 weights each in 30 layers.
    const large = decodeLimit(mixture, [100], readRate);
    expectWithin1Percent(bytesOf(large.experts), 2 * 8 * 3 * 2816 * 704 * 30);
    // 25 layers of 8 heads of 256, 5 of 2 heads of 512.
    expectWithin1Percent(bytesOf(large.attention), 100 * 2 * 2 * (25 * 8 * 256 + 5 * 2 * 512));
  });

  test("requests beyond maxNumSeqs wait for a place", () => {
    const three = [5, 3, 4].map((output) => ({ prompt: 8, output }));
    const steps = (maxNumSeqs: number) =>
      roofline(small, three, readRate, { ...options, maxNumSeqs }).decodeSteps;
    expect([1, 2, 3].map(steps)).toEqual([9, 5, 4]);
  });

  test("a sliding window bounds what a step reads", () => {
    const windowed = { ...small, layerWindows: small.layerWindows.map(() => 10) };
    const kvTokens = (config: ModelConfig) =>
      roofline(config, [{ prompt: 7, output: 6 }], readRate, options).kvTokens;
    expect(kvTokens(small)).toBeCloseTo(8 + 9 + 10 + 11 + 12, 6);
    expect(kvTokens(windowed)).toBeCloseTo(8 + 9 + 10 + 10 + 10, 6);
  });

  test("a decode step reads weights, heads and contexts once; a workload's steps add up to its roofline", () => {
    const contexts = [33, 40, 7];
    const { layers, experts, attention, states, head, step } = decodeLimit(small, contexts, readRate);
    expect(step).toBeCloseTo(layers + attention + head, 12);
    expect([experts, states]).toEqual([0, 0]);
    const lengths = contexts.map((context) => ({ prompt: context - 1, output: 2 }));
    const whole = roofline(small, lengths, readRate, options);
    expect(whole.weightSeconds).toBeCloseTo(layers + head, 12);
    expect(whole.kvSeconds).toBeCloseTo(attention, 12);
    const windowed = { ...small, layerWindows: small.layerWindows.map(() => 10) };
    expect(decodeLimit(windowed, contexts, readRate).attention).toBeCloseTo((attention * 27) / 80, 12);
  });
});
