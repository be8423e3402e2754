import { expect, setDefaultTimeout, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { fitOf, type ModelReport } from "../../../src/llm/inspect-model.ts";
import PUBLISHED from "../../model/published-configs.json" with { type: "json" };
import { temporaryFolder } from "../../support.ts";

setDefaultTimeout(300_000);

const GIB = 2 ** 30;
/** Llama 3.3 70B: 80 layers of 8 key/value heads of 128 dimensions, in bfloat16. */
const REPORT: ModelReport = {
  ...{ architecture: "LlamaForCausalLM", models: "", maxTokens: 131072, cpuBytes: 0 },
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
  expect(fitOf(folder.path, REPORT, memory * GIB, 0.9)).toEqual({ ranks, kvTokens });
});
