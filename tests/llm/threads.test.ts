import { expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM } from "octavo";

setDefaultTimeout(300_000);

const PROMPTS = [3, 40, 130].map((length) => ({
  promptTokenIds: Array.from({ length }, (_, i) => 1 + ((37 * i + length) % 4000)),
}));

/** Tokens of requests that differ in all that draws depend on. */
async function tokens(options: EngineOptions): Promise<number[][]> {
  await using llm = await LLM.create(undefined, { device: "cpu", skipTokenizerInit: true, ...options });
  const common = { maxTokens: 12, ignoreEos: true, seed: 5 };
  const sampling = [
    { ...common, temperature: 0 },
    { ...common, temperature: 0.9 },
    { ...common, temperature: 1.2, topK: 50, topP: 0.9, minP: 0.01, repetitionPenalty: 1.1 },
  ];
  const outputs = await llm.generate(PROMPTS, sampling);
  return outputs.map(({ outputs: [output] }) => [...output!.tokenIds]);
}

test("the same seeds give the same tokens on one thread and on several, however prompts are cut", async () => {
  const expected = await tokens({ threads: 1 });
  expect(await tokens({ threads: 2 })).toEqual(expected);
  expect(await tokens({ threads: 3, maxNumBatchedTokens: 24 })).toEqual(expected);
  expect(await tokens({ threads: 2, kvCacheDtype: "fp8" })).toEqual(
    await tokens({ threads: 1, kvCacheDtype: "fp8" }),
  );
});
