import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM, type RequestOutput, type SamplingParams } from "octavo";
import { fixture } from "./fixtures.ts";
import { MIXED_MODEL_LEN, MIXED_NAMES, MIXED_PROMPTS, smallPool } from "./mixed-windows.ts";

setDefaultTimeout(300_000);

const GREEDY: SamplingParams = { temperature: 0, ignoreEos: true, logprobs: 0, maxTokens: 24 };
const BASE: EngineOptions = { device: "cpu", skipTokenizerInit: true, maxModelLen: MIXED_MODEL_LEN };

describe.each(MIXED_NAMES)("layers with and without windows take turns: %s", (name) => {
  const { modelDir } = fixture(name);
  const create = (options: EngineOptions) => LLM.create(modelDir, { ...BASE, ...options });
  /** Each prompt alone, in a pool in which nothing is ever used twice. */
  const expected = (async () => {
    await using llm = await create({ enablePrefixCaching: false });
    const outputs: RequestOutput[] = [];
    for (const prompt of MIXED_PROMPTS) outputs.push(...(await llm.generate([prompt], GREEDY)));
    return outputs;
  })();
  const expectSame = async (outputs: readonly RequestOutput[], which = [...MIXED_PROMPTS.keys()]) => {
    for (const [i, prompt] of which.entries()) {
      const [own, its] = [outputs[i]!, (await expected)[prompt]!].map(({ outputs: [output] }) => output!);
      expect(own!.tokenIds).toEqual(its!.tokenIds);
      for (const [at, entries] of own!.logprobs!.entries()) {
        const [token, { logprob }] = [...entries][0]!;
        expect(logprob).toBeCloseTo(its!.logprobs![at]!.get(token)!.logprob, 3);
      }
    }
  };

  test("a pool of one sequence, whose blocks windows give back for others, changes nothing", async () => {
    const { groups, blocks, kvCacheMemoryBytes } = smallPool(modelDir, "float32");
    expect(blocks).toBeLessThan(16 * groups.length);
    await using llm = await create({ kvCacheMemoryBytes, maxNumBatchedTokens: 48 });
    for (let round = 0; round < 2; round++) await expectSame(await llm.generate(MIXED_PROMPTS, GREEDY));
    expect(llm.stats().preemptions + llm.stats().prefixHits).toBeGreaterThan(0);
    expect(llm.stats().kvUsage).toBe(0);
  });

  test("a prefix is found where its end's window is, which chunks before had given back", async () => {
    await using llm = await create({ maxNumBatchedTokens: 32 });
    const cached: number[] = [];
    for (const prompt of [0, 1, 2, 0]) {
      const outputs = await llm.generate([MIXED_PROMPTS[prompt]!], GREEDY);
      cached.push(outputs[0]!.numCachedTokens);
      await expectSame(outputs, [prompt]);
    }
    expect(cached).toEqual([0, 160, 96, 160]);
  });

  test("two ranks compute the same", async () => {
    await using llm = await create({ tensorParallelSize: 2, maxNumBatchedTokens: 48 });
    await expectSame(await llm.generate(MIXED_PROMPTS, GREEDY));
  });
});
