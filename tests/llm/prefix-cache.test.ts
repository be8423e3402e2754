import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LLM, Prompt } from "../../src/index.ts";
import { createLLM } from "./support.ts";

setDefaultTimeout(300_000);

const TEXT =
  "Lily and Tom went to the park with their mom. They saw a big dog near the pond, and the dog had a red ball. " +
  "Tom wanted to play with the dog, but Lily was afraid of it";
const FIRST_TOKEN = { temperature: 0, maxTokens: 3, logprobs: 3 };

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(() => llm.dispose());

async function run(model: LLM, prompt: Prompt) {
  const [{ numCachedTokens, promptTokenIds, outputs }, ...none] = (await model.generate(
    prompt,
    FIRST_TOKEN,
  )) as [Awaited<ReturnType<LLM["generate"]>>[number]];
  expect(none).toEqual([]);
  return { numCachedTokens, promptTokens: promptTokenIds.length, completion: outputs[0]! };
}

describe("the prefix cache", () => {
  test("a second call reads whole blocks, and continues the same", async () => {
    const first = await run(llm, TEXT);
    const second = await run(llm, TEXT);
    expect(first.numCachedTokens).toBe(0);
    expect(second.numCachedTokens).toBe(16 * Math.floor((first.promptTokens - 1) / 16));
    expect(second.numCachedTokens).toBeGreaterThan(16);
    expect(second.completion.tokenIds).toEqual(first.completion.tokenIds);
    expect(second.completion.cumulativeLogprob!).toBeCloseTo(first.completion.cumulativeLogprob!, 4);
  });

  test("a longer prompt reads what it shares", async () => {
    await run(llm, TEXT);
    const { numCachedTokens } = await run(llm, `${TEXT}. So she hid behind a tree and waited.`);
    expect(numCachedTokens).toBeGreaterThan(16);
  });

  test("a salt shares with the same salt alone", async () => {
    await run(llm, TEXT);
    const counts = [];
    for (const cacheSalt of ["a", "a", "b"])
      counts.push((await run(llm, { prompt: TEXT, cacheSalt })).numCachedTokens);
    expect(counts[0]).toBe(0);
    expect(counts[1]).toBeGreaterThan(16);
    expect(counts[2]).toBe(0);
  });

  test("reset forgets everything, but not while a request runs", async () => {
    await run(llm, TEXT);
    for await (const _ of llm.stream(TEXT, { temperature: 0, maxTokens: 50 })) {
      expect(llm.resetPrefixCache()).toBe(false);
      break;
    }
    expect((await run(llm, TEXT)).numCachedTokens).toBeGreaterThan(16);
    expect(llm.resetPrefixCache()).toBe(true);
    expect(llm.stats().cachedBlocks).toBe(0);
    expect((await run(llm, TEXT)).numCachedTokens).toBe(0);
  });

  test("prompt log-probabilities and logits do not read it, and are complete", async () => {
    await run(llm, TEXT);
    const [output] = await llm.generate(TEXT, { ...FIRST_TOKEN, promptLogprobs: 0 });
    expect(output!.numCachedTokens).toBe(0);
    expect(output!.promptLogprobs!.slice(1).every((position) => position?.size === 1)).toBe(true);
    const logits = await llm.logits(output!.promptTokenIds);
    const { vocabSize } = llm.modelConfig;
    for (const at of [0, output!.promptTokenIds.length - 1])
      expect(logits.slice(at * vocabSize, (at + 1) * vocabSize).some((logit) => logit !== 0)).toBe(true);
  });

  test("switched off, nothing is reused", async () => {
    await using plain = await createLLM({ enablePrefixCaching: false });
    await run(plain, TEXT);
    expect((await run(plain, TEXT)).numCachedTokens).toBe(0);
  });
});

test("prompts in chunks, blocks of one token and one sequence at a time change nothing", async () => {
  const prompts = [TEXT, "Once upon a time", "The cat sat on"];
  const tokens = async (model: LLM) =>
    (await model.generate(prompts, { temperature: 0, maxTokens: 5 })).map(
      ({ outputs: [first] }) => first!.tokenIds,
    );
  const expected = await tokens(llm);
  const options = [
    { maxNumBatchedTokens: 7 },
    { blockSize: 1 },
    { maxNumSeqs: 1 },
    { overlapScheduling: true },
    { kvCacheMemoryBytes: 5 * 98304, maxModelLen: 80 },
  ];
  for (const changed of options) {
    await using model = await createLLM(changed);
    expect([changed, await tokens(model)]).toEqual([changed, expected]);
  }
});
