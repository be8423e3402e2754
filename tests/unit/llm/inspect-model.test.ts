import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { describeToken } from "../../../src/cli/model-diagnosis.ts";
import { fitOf, type ModelReport, sequenceBytes } from "../../../src/llm/inspect-model.ts";
import PUBLISHED from "../../model/published-configs.json" with { type: "json" };
import { temporaryFolder } from "../../support.ts";

setDefaultTimeout(300_000);

const GIB = 2 ** 30;
/** Llama 3.3 70B: 80 layers of 8 key/value heads of 128 dimensions, in bfloat16. */
const REPORT: ModelReport = {
  ...{ architecture: "LlamaForCausalLM", models: "", maxTokens: 131072, cpuBytes: 0, cpuTokens: 0 },
  ...{ weights: { format: "bfloat16", bytes: 141_107_412_992 }, kvBytesPerToken: 2 * 80 * 8 * 128 * 2 },
  ...{ kvBytesKept: 2 * 80 * 8 * 128 * 2, kvWindow: 0 },
};

test.each([
  // 141 GB of weights; 0.9 of the memory is granted, and a fifth of what is left is kept for activations.
  [180, 1, Math.floor((0.8 * (0.9 * 180 * GIB - 141_107_412_992)) / 327_680)],
  [80, 2, Math.floor((0.8 * (0.9 * 80 * GIB - 141_107_412_992 / 2)) / (327_680 / 2))],
  [40, 4, Math.floor((0.8 * (0.9 * 40 * GIB - 141_107_412_992 / 4)) / (327_680 / 4))],
  [24, 8, Math.floor((0.8 * (0.9 * 24 * GIB - 141_107_412_992 / 8)) / (327_680 / 8))],
  [16, undefined, 0],
])("GPUs of %d GiB: %p hold a model of 70B, with room for %d tokens", (memory, ranks, kvTokens) => {
  using folder = temporaryFolder();
  const { config } = PUBLISHED["meta-llama/Llama-3.3-70B-Instruct"];
  writeFileSync(folder.file("config.json"), JSON.stringify(config));
  expect(fitOf(folder.path, REPORT, memory * GIB, 0.9)).toEqual({
    ...{ ranks, kvTokens },
    sequences: Math.floor(kvTokens / REPORT.maxTokens),
  });
});

describe("a model whose layers with and without windows take turns", () => {
  const config = JSON.stringify(PUBLISHED["openai/gpt-oss-20b"].config);
  /** 24 layers of 8 key/value heads of 64 dimensions, in bfloat16, every other with a window of 128 tokens. */
  const report: ModelReport = {
    ...{ architecture: "GptOssForCausalLM", models: "", maxTokens: 131072, cpuBytes: 0, cpuTokens: 0 },
    ...{
      weights: { format: "mxfp4", bytes: 13 * GIB },
      kvBytesPerToken: 49152,
      kvBytesKept: 24576,
      kvWindow: 128,
    },
  };
  const inFolder = <T>(run: (path: string) => T): T => {
    using own = temporaryFolder();
    writeFileSync(own.file("config.json"), config);
    return run(own.path);
  };

  test("a long sequence takes half of what its tokens take, a short one all", () => {
    const bytes = (tokens: number) => inFolder((path) => sequenceBytes(path, report, tokens));
    expect(bytes(100)).toBe(100 * 49152);
    expect(bytes(32768)).toBe((32768 + 255) * 24576);
  });

  test("so a GPU holds nearly twice the tokens in long sequences", () => {
    const tokens = (length: number) =>
      inFolder((path) => fitOf(path, report, 24 * GIB, 0.9, 1, length).kvTokens);
    expect(tokens(131072) / tokens(255)).toBeWithin(1.98, 2);
    expect(describeToken(report)).toBe("48 KiB of KV cache, 24 KiB of it beyond a window of 128 tokens");
    expect(describeToken(REPORT)).toBe("320 KiB of KV cache");
  });
});

test("of a model with states those of all sequences, and snapshots, leave the rest to tokens", () => {
  using folder = temporaryFolder();
  writeFileSync(folder.file("config.json"), JSON.stringify(PUBLISHED["Qwen/Qwen3.5-9B"].config));
  const [MIB, kvBytesPerToken] = [2 ** 20, 32768];
  const report: ModelReport = {
    ...{
      architecture: "Qwen3_5ForCausalLM",
      models: "",
      maxTokens: 262144,
      cpuBytes: 0,
      cpuTokens: 0,
      kvWindow: 0,
    },
    ...{ weights: { format: "bfloat16", bytes: 16 * GIB }, kvBytesPerToken, kvBytesKept: kvBytesPerToken },
    stateBytes: 50 * MIB,
  };
  const fit = (memory: number, tokens: number) => fitOf(folder.path, report, memory * GIB, 0.9, 1, tokens);
  // Half of 0.8 · (0.9 · 24 − 16) GiB is for 44 sequences and padding, a tenth for 9 snapshots.
  const pool = 0.8 * (0.9 * 24 * GIB - 16 * GIB);
  const kvTokens = Math.floor((pool - (44 + 1 + 9) * 50 * MIB) / kvBytesPerToken);
  expect(fit(24, 1024)).toEqual({ ranks: 1, kvTokens, sequences: 44 });
  expect(fit(24, 4096).sequences).toBe(Math.floor(kvTokens / 4096));
  expect(fit(80, 1024).sequences).toBe(256);
});
