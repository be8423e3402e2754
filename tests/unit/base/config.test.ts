import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, resolveEngineConfig } from "../../../src/base/config.ts";
import { ConfigError, ExitCode } from "../../../src/base/errors.ts";

setDefaultTimeout(300_000);

const resolve = (options: object) => resolveEngineConfig(options as EngineOptions);

function refusal(options: object): ConfigError {
  try {
    resolve(options);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return error as ConfigError;
  }
  throw new Error(`${Bun.inspect(options)} was accepted`);
}

const NO_INTEGER: readonly unknown[] = [0.5, Number.NaN, Infinity, "1", true, null, 1n, {}];
const NO_FLAG: readonly unknown[] = [0, 1, "true", null];
const NO_TEXT: readonly unknown[] = ["", 1, null, false];

const OPTIONS: Readonly<
  Record<keyof EngineOptions, { readonly bad: readonly unknown[]; readonly good: readonly unknown[] }>
> = {
  device: { bad: ["gpu", "", 0, null], good: ["auto", "cuda", "cpu", "cpu-reference"] },
  threads: { bad: [...NO_INTEGER, 0, 1025], good: [1, 1024] },
  dtype: { bad: ["float64", "half", 16, null], good: ["auto", "bfloat16", "float16", "float32"] },
  quantization: { bad: ["int4", "hqq", 8, null], good: ["fp8", "fp8_per_channel", "fp8_per_block", "awq"] },
  quantizeLmHead: { bad: NO_FLAG, good: [true, false] },
  quantizeActivations: { bad: NO_FLAG, good: [true, false] },
  kvCacheDtype: { bad: ["fp8_e5m2", "float8", 8, null], good: ["auto", "fp8", "fp8_e4m3"] },
  cpuKernels: { bad: ["sse", 512, null], good: ["auto", "avx512", "avx2", "wasm"] },
  maxModelLen: { bad: [...NO_INTEGER, 0, -1, 2 ** 24 + 1], good: [1, 2 ** 24] },
  maxNumSeqs: { bad: [...NO_INTEGER, 0, 4097], good: [1, 4096] },
  maxNumBatchedTokens: { bad: [...NO_INTEGER, 0, 2 ** 20 + 1], good: [1, 2 ** 20] },
  blockSize: { bad: [...NO_INTEGER, 0, 3, 24, 512], good: [1, 2, 16, 256] },
  gpuMemoryUtilization: { bad: [0, -0.1, 1.1, Number.NaN, "0.9", null], good: [0.01, 1] },
  kvCacheMemoryBytes: { bad: [...NO_INTEGER, 0, -1, 2 ** 53], good: [1, 2 ** 40] },
  tensorParallelSize: { bad: [...NO_INTEGER, 0, 9], good: [1, 8] },
  gpuIndex: { bad: [...NO_INTEGER, -1, 1024], good: [0, 7] },
  enforceEager: { bad: NO_FLAG, good: [true, false] },
  batchInvariant: { bad: NO_FLAG, good: [true, false] },
  enablePrefixCaching: { bad: NO_FLAG, good: [true, false] },
  overlapScheduling: { bad: NO_FLAG, good: [true, false] },
  loadFormat: { bad: ["safetensors", 1, null], good: ["auto", "dummy"] },
  skipTokenizerInit: { bad: NO_FLAG, good: [true, false] },
  seed: { bad: [...NO_INTEGER, -1, 2 ** 53], good: [0, 2 ** 53 - 1] },
  revision: { bad: NO_TEXT, good: ["main", "abc123"] },
  downloadDir: { bad: NO_TEXT, good: ["/models"] },
  chatTemplate: { bad: NO_TEXT, good: ["{{ messages }}"] },
  generationConfig: { bad: ["model", 1, null], good: ["auto", "vllm"] },
  maxLogprobs: { bad: [...NO_INTEGER, -2, 2 ** 24 + 1], good: [-1, 0, 2 ** 24] },
};

describe("the range of each option", () => {
  for (const [option, { bad, good }] of Object.entries(OPTIONS)) {
    test(`${option} refuses what is out of range`, () => {
      for (const value of bad) expect([value, refusal({ [option]: value }).option]).toEqual([value, option]);
    });

    test(`${option} keeps what is in range, and takes undefined as left out`, () => {
      for (const value of good) expect(resolve({ [option]: value })).toHaveProperty(option, value);
      expect(resolve({ [option]: undefined })).toEqual(resolve({}));
    });
  }

  test("an unknown option is refused by name, even when undefined", () => {
    expect(refusal({ max_model_len: 5 }).option).toBe("max_model_len");
    expect(refusal({ speculativeConfig: undefined }).option).toBe("speculativeConfig");
  });
});

test("the defaults", () => {
  expect(resolve({})).toEqual({
    ...{
      device: "auto",
      threads: undefined,
      cpuKernels: "auto",
      dtype: "auto",
      quantization: undefined,
      kvCacheDtype: "auto",
    },
    ...{ quantizeLmHead: false, quantizeActivations: true },
    ...{ maxModelLen: undefined, maxNumSeqs: 256 },
    ...{ maxNumBatchedTokens: 16384, blockSize: 16, gpuMemoryUtilization: 0.9 },
    ...{ kvCacheMemoryBytes: undefined, tensorParallelSize: 1, gpuIndex: 0, enforceEager: false },
    batchInvariant: false,
    ...{ enablePrefixCaching: true, overlapScheduling: undefined, loadFormat: "auto" },
    ...{ skipTokenizerInit: false, seed: 0, revision: "main", downloadDir: undefined },
    ...{ chatTemplate: undefined, generationConfig: "auto", maxLogprobs: 20 },
  });
  expect(resolveEngineConfig()).toEqual(resolve({}));
});

test("the config is frozen, and its errors tell the value and end a program with exit code 64", () => {
  expect(Object.isFrozen(resolve({}))).toBe(true);
  expect(refusal({ maxNumSeqs: Number.NaN }).message).toContain("not NaN");
  expect(refusal({ device: "tpu" })).toMatchObject({ code: "invalid_config", exitCode: ExitCode.usage });
});
