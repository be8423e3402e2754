import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM, type RequestOutput, type SamplingParams } from "octavo";
import type { Communicator } from "../../src/backend/communicator.ts";
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { resolveEngineConfig } from "../../src/base/config.ts";
import { loadPart } from "../../src/llm/load-part.ts";
import { readModelConfig } from "../../src/models/config.ts";
import type { Exchange } from "../../src/ranks/exchange.ts";
import { temporaryFolder } from "../support.ts";
import { writeDivisibleModels } from "./divisible-models.ts";
import { FIXTURES } from "./fixtures.ts";
import { FLOAT32, referenceSuite } from "./suite.ts";

setDefaultTimeout(300_000);

const folder = temporaryFolder();
afterAll(() => folder[Symbol.dispose]());
const DIVISIBLE_MODELS = writeDivisibleModels(folder);

const options = { device: "cpu", tensorParallelSize: 2 } as const;
for (const fixture of FIXTURES) {
  const variants = [
    { name: "2 ranks", options, maxPrompt: 100 },
    { name: "2 ranks, chunks of 7 tokens", options: { ...options, maxNumBatchedTokens: 7 }, maxPrompt: 64 },
  ];
  referenceSuite(fixture, variants, FLOAT32);
}

/** Prompts of tokens, some with a prefix in common, of different lengths. */
const PROMPTS = [5, 33, 40, 17, 70].map((length, i) => ({
  promptTokenIds: Array.from({ length }, (_, t) => (t * 7 + (t < 16 ? 0 : i * 13) + 3) % 200),
}));

/** Greedy and seeded, drawn plainly and from processed logits. */
const PARAMS: readonly SamplingParams[] = [
  { temperature: 0, logprobs: 3, promptLogprobs: 2 },
  { temperature: 0.7, seed: 1 },
  { temperature: 0.9, seed: 2, topP: 0.9, topK: 40, minP: 0.01 },
  { temperature: 0, repetitionPenalty: 1.3, frequencyPenalty: 0.5, logitBias: { 3: 2, 150: -4 } },
  { temperature: 1, seed: 3, allowedTokenIds: [1, 60, 120, 199], n: 2 },
].map((params) => ({ ...params, maxTokens: 24, ignoreEos: true }));

/** Tokens are the same; log-probabilities are as good as that. */
function expectSame(actual: readonly RequestOutput[], expected: readonly RequestOutput[]): void {
  const tokens = (outputs: readonly RequestOutput[]) => outputs.map((o) => o.outputs.map((c) => c.tokenIds));
  expect(tokens(actual)).toEqual(tokens(expected));
  expect(positionsOf(actual).length).toBe(positionsOf(expected).length);
  for (const [i, position] of positionsOf(expected).entries()) {
    for (const [id, { logprob }] of position) {
      const found = positionsOf(actual)[i]!.get(id);
      // Of two that are equally likely, the other may be the last of the list.
      if (found) expect(Math.abs(found.logprob - logprob)).toBeLessThan(1e-3);
    }
  }
}

function positionsOf(outputs: readonly RequestOutput[]) {
  const all = outputs.flatMap((o) => [
    ...(o.promptLogprobs ?? []),
    ...o.outputs.flatMap((c) => c.logprobs ?? []),
  ]);
  return all.filter((position) => position !== null);
}

describe.each(DIVISIBLE_MODELS)("$name", ({ folder, sizes, blockBytes }) => {
  const load = (size: number, more: EngineOptions = {}) =>
    LLM.create(folder, { device: "cpu", skipTokenizerInit: true, tensorParallelSize: size, ...more });
  let expected: RequestOutput[];
  let logits: Float32Array;
  beforeAll(async () => {
    await using alone = await load(1);
    expected = await alone.generate(PROMPTS, PARAMS);
    logits = await alone.logits(PROMPTS[1]!.promptTokenIds);
  });

  test.each(sizes)("%d ranks: the outputs of one, from a cold cache and a warm one", async (size) => {
    await using ranks = await load(size);
    expectSame(await ranks.generate(PROMPTS, PARAMS), expected);
    const warm = await ranks.generate(PROMPTS, PARAMS);
    expectSame(warm, expected);
    expect(warm.some(({ numCachedTokens }) => numCachedTokens > 0)).toBe(true);
    const actual = await ranks.logits(PROMPTS[1]!.promptTokenIds);
    const scale = Math.max(...logits.map(Math.abs));
    expect(Math.max(...actual.map((x, i) => Math.abs(x - logits[i]!)))).toBeLessThan(1e-4 * scale);
  });

  // Nothing of this depends on how heads are shared: more ranks than two show no more for each model again.
  const loaded = sizes.filter((size) => size === 2 || (size === 4 && folder === DIVISIBLE_MODELS[0]!.folder));
  test.each(loaded)("%d ranks: chunks, overlap, preemption and aborts change nothing", async (size) => {
    // Prompts fit, their continuations do not.
    const kvCacheMemoryBytes = 7 * blockBytes(size);
    await using ranks = await load(size, {
      kvCacheMemoryBytes,
      maxNumBatchedTokens: 19,
      overlapScheduling: true,
    });
    const leaving = new AbortController();
    const aborted = ranks.generate(
      PROMPTS.slice(0, 2),
      { maxTokens: 60, ignoreEos: true },
      {
        signal: leaving.signal,
        onProgress: ({ outputTokens }) => outputTokens > 3 && leaving.abort(),
      },
    );
    expectSame(await ranks.generate(PROMPTS, PARAMS), expected);
    expect((await aborted).map((o) => o.outputs[0]!.finishReason)).toEqual(["abort", "abort"]);
    expect(ranks.stats().preemptions).toBeGreaterThan(0);
    expect(ranks.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
  });
});

test("a rank's pool and context are no larger than any other rank can have", async () => {
  const { folder } = DIVISIBLE_MODELS[0]!;
  const modelConfig = readModelConfig(folder);
  const config = resolveEngineConfig({ kvCacheMemoryBytes: 2 ** 20 });
  const shard = { rank: 1, size: 2 };
  const backend = new CpuBackend(undefined, { shard } as Communicator);
  const part = await loadPart({ folder, config, modelConfig, shard }, backend, () => {});
  const [asked, others] = [[] as number[], [48, 5, 0]];
  const minimum = (value: number) => Math.min(asked[asked.push(value) - 1]!, others[asked.length - 1]!);
  const runner = part.build({ minimum } as Exchange);
  expect(asked).toEqual([128, expect.any(Number), 0]);
  expect(asked[1]).toBeGreaterThan(5);
  expect([runner.maxModelLen, runner.numBlocks]).toEqual([48, 5]);
  runner.dispose();
  backend.dispose();
});

test("progress is that of all ranks together, and each reads its part", async () => {
  const read = async (tensorParallelSize: number) => {
    const totals = new Set<number>();
    let [last, grows] = [0, true];
    const llm = await LLM.create(DIVISIBLE_MODELS[0]!.folder, {
      ...{ device: "cpu", skipTokenizerInit: true, tensorParallelSize },
      onProgress: ({ loadedBytes, totalBytes }) => {
        totals.add(totalBytes);
        grows &&= loadedBytes >= last;
        last = loadedBytes;
      },
    });
    llm.dispose();
    expect(grows).toBe(true);
    return { totals: [...totals], last };
  };
  const [one, two] = [await read(1), await read(2)];
  expect(one.totals).toEqual([one.last]);
  expect(two.totals).toEqual([two.last]);
  // Norms are read by both, and rows of less than a page whole.
  expect(two.last).toBeGreaterThan(one.last);
  expect(two.last).toBeLessThan(1.3 * one.last);
});
