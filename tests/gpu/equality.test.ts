import { expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM, type SamplingParams } from "octavo";
import { Context } from "../../src/cuda/context.ts";
import { describeGpu } from "./gpu.ts";

setDefaultTimeout(300_000);

const BASE: EngineOptions = { device: "cuda", kvCacheMemoryBytes: 2 ** 28 };
const PROMPTS = Array.from({ length: 24 }, (_, i) => ({
  promptTokenIds: Array.from({ length: 3 + i * 7 }, (_, t) => (t * 37 + i * 101) % 4000),
}));
// Lengths are known in advance, so that both sides of a comparison run the same batches: other batch sizes may take other
// matrix kernels, which round differently.
const PARAMS = PROMPTS.map(
  (_, i): SamplingParams => ({ temperature: 0.8, seed: i, maxTokens: 40 + i, ignoreEos: true }),
);

async function tokensOf(options: EngineOptions, params: readonly SamplingParams[] = PARAMS) {
  await using llm = await LLM.create(undefined, { ...BASE, ...options });
  const outputs = await llm.generate(PROMPTS, params);
  return outputs.map(({ outputs: [completion] }) => completion!.tokenIds);
}

describeGpu("the same tokens, bit for bit", () => {
  test("graph replay and eager execution", async () => {
    // Eager steps are not padded to a bucket: with 24 rows throughout there is nothing to pad.
    const fixed = PARAMS.map((params) => ({ ...params, maxTokens: 50 }));
    expect(await tokensOf({ maxNumSeqs: 24 }, fixed)).toEqual(
      await tokensOf({ maxNumSeqs: 24, enforceEager: true }, fixed),
    );
  });

  test("overlapped and sequential steps", async () => {
    expect(await tokensOf({ overlapScheduling: true })).toEqual(await tokensOf({ overlapScheduling: false }));
  });

  test("with batchInvariant, seeded requests alone, among 200 others, and eagerly", async () => {
    // Short and long: products of few, some hundred and many tokens, contexts of one and of several splits.
    const prompts = [5, 90, 300, 700].map((length, i) => ({
      promptTokenIds: Array.from({ length }, (_, t) => (t * 61 + i * 977 + 11) % 4000),
    }));
    const seeded: SamplingParams[] = [
      { temperature: 0.9, topP: 0.95, seed: 1234, maxTokens: 64, ignoreEos: true },
      { temperature: 1, seed: 5, maxTokens: 48, ignoreEos: true },
      { temperature: 0, maxTokens: 64, ignoreEos: true, logprobs: 3 },
      { temperature: 0.7, topK: 40, seed: 77, maxTokens: 64, ignoreEos: true },
    ];
    const others = Array.from({ length: 200 }, (_, i) => ({
      promptTokenIds: Array.from({ length: 1 + ((i * 37) % 120) }, (_, t) => (t * 13 + i * 7) % 4000),
    }));
    const [first, second]: number[][][] = [[], []];
    {
      await using llm = await LLM.create(undefined, { ...BASE, batchInvariant: true });
      for (const [i, prompt] of prompts.entries()) {
        const [alone] = await llm.generate(prompt, seeded[i]!);
        first!.push([...alone!.outputs[0]!.tokenIds]);
      }
      const batch = await llm.generate(
        [...others.slice(0, 100), ...prompts, ...others.slice(100)],
        [
          ...others.slice(0, 100).map((_, i) => ({ maxTokens: 20 + (i % 60) })),
          ...seeded,
          ...others.slice(100).map(() => ({ maxTokens: 50 })),
        ],
      );
      for (const { outputs } of batch.slice(100, 104)) second!.push([...outputs[0]!.tokenIds]);
    }
    expect(second).toEqual(first!);
    await using eager = await LLM.create(undefined, { ...BASE, batchInvariant: true, enforceEager: true });
    const again = await eager.generate(prompts, seeded);
    expect(again.map(({ outputs }) => [...outputs[0]!.tokenIds])).toEqual(first!);
  });
});

describeGpu("device memory", ({ driver, device }) => {
  test("returns to its starting level after dispose, twenty times over", async () => {
    const free = () => {
      using context = Context.retain(driver.api, device);
      return context.memory().free;
    };
    const cycle = async () => {
      await using llm = await LLM.create(undefined, BASE);
      await llm.generate("Once upon a time", { maxTokens: 8 });
    };
    await cycle();
    const before = free();
    for (let i = 0; i < 20; i++) await cycle();
    expect(free()).toBe(before);
  });
});
