import { expect, setDefaultTimeout, test } from "bun:test";
import { LLM } from "octavo";
import { fixture } from "../model/fixtures.ts";
import { describeGpu } from "./gpu.ts";

setDefaultTimeout(300_000);

describeGpu("prefixes of a hybrid on the GPU", () => {
  test("go on from snapshots of states: the same tokens come out", async () => {
    const { modelDir, cases } = fixture("qwen3-5");
    const long = cases.find(({ prompt }) => prompt.length === 600)!.prompt;
    const own = (first: number, length: number) => Array.from({ length }, (_, i) => (i * 7 + first) % 64);
    const prompts = [own(1, 30), own(2, 90), own(3, 1), own(2, 150)].map((rest) => ({
      promptTokenIds: [...long.slice(0, 300), ...rest],
    }));
    const options = {
      device: "cuda",
      dtype: "float16",
      kvCacheMemoryBytes: 2 ** 28,
      skipTokenizerInit: true,
    } as const;
    await using cold = await LLM.create(modelDir, { ...options, enablePrefixCaching: false });
    await using llm = await LLM.create(modelDir, options);
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
