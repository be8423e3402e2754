import { expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM, type SamplingParams } from "octavo";
import { Context } from "../../src/cuda/context.ts";
import { describeGpu } from "./gpu.ts";

setDefaultTimeout(300_000);

const BASE: EngineOptions = { device: "cuda", gpuMemoryUtilization: 0.2 };
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

  test("a seeded request alone and in a batch of 64", async () => {
    await using llm = await LLM.create(undefined, BASE);
    const params = { temperature: 0.9, topP: 0.95, seed: 1234, maxTokens: 64, ignoreEos: true };
    const prompt = { promptTokenIds: [11, 222, 333, 444, 555] };
    const others = Array.from({ length: 63 }, (_, i) => ({ promptTokenIds: [i + 1, 2 * i + 5, 77] }));
    const [alone] = await llm.generate(prompt, params);
    const batch = await llm.generate([prompt, ...others], [params, ...others.map(() => ({ maxTokens: 64 }))]);
    expect(batch[0]!.outputs[0]!.tokenIds).toEqual(alone!.outputs[0]!.tokenIds);
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
