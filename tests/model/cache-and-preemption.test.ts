import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { LLM } from "octavo";
import { FIXTURES } from "./fixtures.ts";
import { checkGreedy, FLOAT32 } from "./suite.ts";

setDefaultTimeout(300_000);

const GREEDY = { temperature: 0, ignoreEos: true, logprobs: 0 } as const;

for (const fixture of FIXTURES) {
  const continued = fixture.cases.filter(({ greedy, prompt }) => greedy !== null && prompt.length <= 257);
  const prompts = continued.map(({ prompt }) => ({ promptTokenIds: prompt }));
  const params = continued.map(({ greedy }) => ({ ...GREEDY, maxTokens: greedy!.tokens.length }));

  describe(fixture.name, () => {
    test("a prefix-cache hit changes nothing", async () => {
      await using llm = await LLM.create(fixture.modelDir, { device: "cpu", skipTokenizerInit: true });
      const cold = await llm.generate(prompts, params);
      expect(cold.map(({ numCachedTokens }) => numCachedTokens)).toEqual(prompts.map(() => 0));
      const warm = await llm.generate(prompts, params);
      for (const [i, reference] of continued.entries()) {
        const cachedBlocks = Math.floor((reference.prompt.length - 1) / 16);
        expect(warm[i]!.numCachedTokens).toBe(cachedBlocks * 16);
        checkGreedy(warm[i]!, reference, FLOAT32);
        expect(warm[i]!.outputs[0]!.tokenIds).toEqual(cold[i]!.outputs[0]!.tokenIds);
      }
    });

    test("preemption and recomputation change nothing", async () => {
      const short = continued.filter(({ prompt }) => prompt.length <= 100);
      const prompts = short.map(({ prompt }) => ({ promptTokenIds: prompt }));
      const params = short.map(({ greedy }) => ({ ...GREEDY, maxTokens: greedy!.tokens.length }));
      const roomy = await LLM.create(fixture.modelDir, { device: "cpu", skipTokenizerInit: true });
      const { headDim, numKvHeads, numLayers } = roomy.modelConfig;
      const expected = await roomy.generate(prompts, params);
      roomy.dispose();
      // All prompts fit, their continuations do not: the longest sequence alone takes 11 of the 12 blocks.
      const kvCacheMemoryBytes = 12 * 16 * 2 * numLayers * numKvHeads * headDim * 4;
      const options = { device: "cpu", skipTokenizerInit: true, kvCacheMemoryBytes } as const;
      await using llm = await LLM.create(fixture.modelDir, options);
      const outputs = await llm.generate(prompts, params);
      expect(llm.stats().preemptions).toBeGreaterThan(0);
      for (const [i, reference] of short.entries()) checkGreedy(outputs[i]!, reference, FLOAT32);
      expect(outputs.map((o) => o.outputs[0]!.tokenIds)).toEqual(expected.map((o) => o.outputs[0]!.tokenIds));
    });
  });
}
