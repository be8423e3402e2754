import { expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM } from "octavo";
import { ConfigError } from "../../src/base/errors.ts";
import { fixture } from "../model/fixtures.ts";
import { describeGpu } from "./gpu.ts";
import { expectLikeCpu } from "./like-cpu.ts";
import { FLOAT16 } from "./tolerances.ts";

setDefaultTimeout(300_000);

const OPTIONS = {
  device: "cuda",
  dtype: "float16",
  kvCacheMemoryBytes: 2 ** 28,
  skipTokenizerInit: true,
} as const satisfies EngineOptions;

describeGpu("prefixes of a hybrid on the GPU", () => {
  test("go on from snapshots of states: the same tokens come out", async () => {
    const { modelDir, cases } = fixture("qwen3-5");
    const long = cases.find(({ prompt }) => prompt.length === 600)!.prompt;
    const own = (first: number, length: number) => Array.from({ length }, (_, i) => (i * 7 + first) % 64);
    const prompts = [own(1, 30), own(2, 90), own(3, 1), own(2, 150)].map((rest) => ({
      promptTokenIds: [...long.slice(0, 300), ...rest],
    }));
    await using cold = await LLM.create(modelDir, { ...OPTIONS, enablePrefixCaching: false });
    await using llm = await LLM.create(modelDir, OPTIONS);
    const params = { temperature: 0, maxTokens: 16, ignoreEos: true };
    const cached: number[] = [];
    for (const prompt of prompts) {
      const [[expected], [actual]] = [
        await cold.generate([prompt], params),
        await llm.generate([prompt], params),
      ];
      cached.push(actual!.numCachedTokens);
      expect(actual!.outputs[0]!.tokenIds).toEqual(expected!.outputs[0]!.tokenIds);
    }
    expect(cached).toEqual([0, 0, 256, 384]);
  });
});

describeGpu("hybrids whose weights are quantised while they are loaded", () => {
  // Activations stay as the CPU's are.
  const options = { ...OPTIONS, quantizeActivations: false };
  const models = { "qwen3-5": 600, "qwen3-5-moe": 7, "qwen3-next": 7 } as const;
  for (const [name, maxPrompt] of Object.entries(models) as [keyof typeof models, number][])
    test.each(["fp8", "fp8_per_block"] as const)(`${name}, %s`, (quantization) =>
      expectLikeCpu(fixture(name), { ...options, quantization }, FLOAT16, maxPrompt),
    );
});

describeGpu("a hybrid with batchInvariant", () => {
  test("is refused by name", async () => {
    const refused = LLM.create(fixture("qwen3-5").modelDir, { ...OPTIONS, batchInvariant: true });
    const error = await refused.then(
      (llm) => llm.dispose(),
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(ConfigError);
    expect((error as ConfigError).option).toBe("batchInvariant");
  });
});
