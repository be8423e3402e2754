import { expect, setDefaultTimeout, test } from "bun:test";
import { LLM } from "octavo";
import { fixture, HYBRID_FIXTURES } from "./fixtures.ts";
import { CHUNKED_ON_CPU, checkGreedy, checkQuantisedOnLoad, FLOAT32, referenceSuite } from "./suite.ts";

setDefaultTimeout(300_000);

const options = { device: "cpu" } as const;
for (const fixture of HYBRID_FIXTURES) referenceSuite(fixture, CHUNKED_ON_CPU, FLOAT32);

const GREEDY = { temperature: 0, ignoreEos: true, logprobs: 0 } as const;

test.each([1, 2])(
  "preemption, aborts and several completions, on %d ranks: a slot's state is its sequence's",
  async (ranks) => {
    const { modelDir, cases } = fixture("qwen3-5");
    const continued = cases.filter(({ greedy, prompt }) => greedy !== null && prompt.length <= 100);
    const prompts = continued.map(({ prompt }) => ({ promptTokenIds: prompt }));
    const params = continued.map(({ greedy }) => ({ ...GREEDY, maxTokens: greedy!.tokens.length }));
    // Many that start small and grow.
    const crowd = Array<(typeof prompts)[number]>(6).fill(prompts[0]!);
    const drawn = { temperature: 1, seed: 5, n: 2, maxTokens: 60, ignoreEos: true };
    const all = { skipTokenizerInit: true, maxModelLen: 160, ...options };
    await using roomy = await LLM.create(modelDir, all);
    const expected = await roomy.generate(crowd, drawn);
    await using llm = await LLM.create(modelDir, {
      ...{ ...all, tensorParallelSize: ranks, maxNumBatchedTokens: 32, overlapScheduling: true },
      // Half of it is for states; what is left holds prompts, and not all of what follows.
      kvCacheMemoryBytes: 260_000,
    });
    const leaving = new AbortController();
    const aborted = llm.generate(
      prompts,
      { maxTokens: 60, ignoreEos: true },
      {
        signal: leaving.signal,
        onProgress: ({ outputTokens }) => outputTokens > 3 && leaving.abort(),
      },
    );
    const [greedy, several] = await Promise.all([llm.generate(prompts, params), llm.generate(crowd, drawn)]);
    expect((await aborted).map((o) => o.outputs[0]!.finishReason)).toEqual(prompts.map(() => "abort"));
    expect(llm.stats().preemptions).toBeGreaterThan(0);
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
    for (const [i, output] of greedy.entries()) checkGreedy(output, continued[i]!, FLOAT32);
    const tokens = (outputs: typeof several) => outputs.map((o) => o.outputs.map((c) => c.tokenIds));
    expect(tokens(several)).toEqual(tokens(expected));
  },
);

test.each([1, 2])(
  "prefixes go on from snapshots of states, on %d ranks: nothing else comes out",
  async (ranks) => {
    const { modelDir, cases } = fixture("qwen3-5");
    const long = cases.find(({ prompt }) => prompt.length === 600)!.prompt;
    const all = { skipTokenizerInit: true, ...options, tensorParallelSize: ranks, overlapScheduling: true };
    await using cold = await LLM.create(modelDir, { ...all, enablePrefixCaching: false });
    await using llm = await LLM.create(modelDir, all);
    // In the middle of an interval: what prompts have in common ends there, or the one before did.
    const own = (first: number, length: number) => Array.from({ length }, (_, i) => (i * 7 + first) % 64);
    const prompts = [
      [...long.slice(0, 300), ...own(1, 30)],
      [...long.slice(0, 300), ...own(2, 90)],
      [...long.slice(0, 300), ...own(3, 1)],
      long.slice(0, 321),
      [...long.slice(0, 70), ...own(4, 20)],
      [...long.slice(0, 300), ...own(2, 90), ...own(5, 60)],
    ].map((promptTokenIds) => ({ promptTokenIds }));
    // The first leaves a state at its own last border, and the second one where they part.
    const cached = [0, 0, 256, 256, 0, 384];
    const params = { ...GREEDY, maxTokens: 20, logprobs: 2 };
    for (const [i, prompt] of prompts.entries()) {
      const [[expected], [actual]] = [
        await cold.generate([prompt], params),
        await llm.generate([prompt], params),
      ];
      expect(actual!.numCachedTokens).toBe(cached[i]!);
      expect(actual!.outputs[0]!.tokenIds).toEqual(expected!.outputs[0]!.tokenIds);
    }
    const drawn = { temperature: 1, seed: 9, n: 3, maxTokens: 20, ignoreEos: true };
    const prompt = { promptTokenIds: long.slice(50, 250) };
    const [[expected], [actual]] = [
      await cold.generate([prompt], drawn),
      await llm.generate([prompt], drawn),
    ];
    expect(actual!.outputs.map((o) => o.tokenIds)).toEqual(expected!.outputs.map((o) => o.tokenIds));
  },
);

test("a pool without room for a state is refused by what it takes", async () => {
  const { modelDir } = fixture("qwen3-5");
  const create = LLM.create(modelDir, { ...options, skipTokenizerInit: true, kvCacheMemoryBytes: 2 ** 14 });
  const error = await create.catch((reason: unknown) => reason);
  expect(`${error}`).toMatch(/a sequence's state takes 12 KiB, .* raise kvCacheMemoryBytes/);
});

test.each([
  ["qwen3-5", 1],
  ["qwen3-next", 2],
] as const)("%s, quantised while it is loaded, on %d ranks: gates stay exact", (name, ranks) =>
  checkQuantisedOnLoad(fixture(name), ranks),
);
