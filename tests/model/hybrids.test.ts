import { expect, setDefaultTimeout, test } from "bun:test";
import { LLM } from "octavo";
import { fixture, HYBRID_FIXTURES } from "./fixtures.ts";
import { checkGreedy, referenceSuite, type Tolerance } from "./suite.ts";

setDefaultTimeout(300_000);

/** float32 against float32: only the order of additions differs. */
const FLOAT32: Tolerance = { stds: 2e-3, relative: 1e-3, cosine: 0.99999, logprob: 1e-3, greedyGap: 0.01 };

const options = { device: "cpu" } as const;
for (const fixture of HYBRID_FIXTURES)
  referenceSuite(
    fixture,
    [
      { name: "whole prompts", options, maxPrompt: 600 },
      { name: "chunks of a token", options: { ...options, maxNumBatchedTokens: 1 }, maxPrompt: 33 },
      { name: "chunks of 64 tokens", options: { ...options, maxNumBatchedTokens: 64 }, maxPrompt: 600 },
      {
        name: "the reference backend, chunks of 7 tokens",
        options: { device: "cpu-reference", maxNumBatchedTokens: 7 },
        maxPrompt: 33,
      },
      { name: "2 ranks", options: { ...options, tensorParallelSize: 2 }, maxPrompt: 100 },
    ],
    FLOAT32,
  );

const GREEDY = { temperature: 0, ignoreEos: true, logprobs: 0 } as const;

test.each([1, 2])(
  "preemption, aborts and several completions, on %d ranks: a slot's state is its sequence's",
  async (ranks) => {
    const { modelDir, cases } = fixture("qwen3-5");
    const continued = cases.filter(({ greedy, prompt }) => greedy !== null && prompt.length <= 100);
    const prompts = continued.map(({ prompt }) => ({ promptTokenIds: prompt }));
    const params = continued.map(({ greedy }) => ({ ...GREEDY, maxTokens: greedy!.tokens.length }));
    const drawn = { temperature: 1, seed: 5, n: 3, maxTokens: 30, ignoreEos: true };
    const all = { skipTokenizerInit: true, maxModelLen: 160, ...options };
    await using roomy = await LLM.create(modelDir, all);
    const expected = await roomy.generate(prompts, drawn);
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
    const [greedy, several] = await Promise.all([
      llm.generate(prompts, params),
      llm.generate(prompts, drawn),
    ]);
    expect((await aborted).map((o) => o.outputs[0]!.finishReason)).toEqual(prompts.map(() => "abort"));
    expect(llm.stats().preemptions).toBeGreaterThan(0);
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0, cachedBlocks: 0 });
    for (const [i, output] of greedy.entries()) checkGreedy(output, continued[i]!, FLOAT32);
    const tokens = (outputs: typeof several) => outputs.map((o) => o.outputs.map((c) => c.tokenIds));
    expect(tokens(several)).toEqual(tokens(expected));
  },
);

test("a pool without room for a state is refused by what it takes", async () => {
  const { modelDir } = fixture("qwen3-5");
  const create = LLM.create(modelDir, { ...options, skipTokenizerInit: true, kvCacheMemoryBytes: 2 ** 14 });
  const error = await create.catch((reason: unknown) => reason);
  expect(`${error}`).toMatch(/a sequence's state takes 11 KiB, .* raise kvCacheMemoryBytes/);
});
