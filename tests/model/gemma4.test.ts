import { expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM, type RequestOutput } from "octavo";
import { inspectModel } from "../../src/llm/inspect-model.ts";
import { temporaryFolder } from "../support.ts";
import { cosine } from "./compare.ts";
import { fixture, GEMMA4_FIXTURES } from "./fixtures.ts";
import { MIXED_MODEL_LEN, MIXED_PROMPTS, smallPool } from "./mixed-windows.ts";
import {
  CHUNKED_ON_CPU,
  checkGreedy,
  checkLogits,
  checkQuantisedOnLoad,
  FLOAT32,
  referenceSuite,
} from "./suite.ts";

setDefaultTimeout(300_000);

const options = { device: "cpu" } as const;
for (const fixture of GEMMA4_FIXTURES) referenceSuite(fixture, CHUNKED_ON_CPU, FLOAT32);

test.each(GEMMA4_FIXTURES.map((each) => [each.name, each] as const))(
  "%s on the fast backend, in chunks of 7 tokens that begin and end anywhere in a window and a block",
  async (_, { modelDir, vocabSize, cases }) => {
    // Nothing of what follows them changes its logits.
    const longest = cases.findLast(({ prompt }) => prompt.length >= 100)!;
    const prompt = longest.prompt.slice(0, 257);
    const positions = longest.positions.filter((position) => position < prompt.length);
    expect(positions.length).toBeGreaterThan(4);
    await using llm = await LLM.create(modelDir, {
      ...{ ...options, skipTokenizerInit: true, maxNumBatchedTokens: 7 },
    });
    checkLogits(await llm.logits(prompt), vocabSize, { ...longest, prompt, positions }, FLOAT32);
  },
);

const GREEDY = { temperature: 0, ignoreEos: true, logprobs: 0 } as const;
const E_MODEL = fixture("gemma4-e");
const CONTINUED = E_MODEL.cases.filter(({ greedy, prompt }) => greedy !== null && prompt.length <= 100);
const PROMPTS = CONTINUED.map(({ prompt }) => ({ promptTokenIds: prompt }));
const PARAMS = CONTINUED.map(({ greedy }) => ({ ...GREEDY, maxTokens: greedy!.tokens.length }));

test.each([1, 2])("prefix hits change nothing, on %d ranks", async (tensorParallelSize) => {
  const all = { ...options, skipTokenizerInit: true, tensorParallelSize, overlapScheduling: true } as const;
  await using llm = await LLM.create(E_MODEL.modelDir, { ...all, maxNumBatchedTokens: 64 });
  for (const isWarm of [false, true]) {
    const outputs = await llm.generate(PROMPTS, PARAMS);
    expect(outputs.some(({ numCachedTokens }) => numCachedTokens > 0)).toBe(isWarm);
    for (const [i, output] of outputs.entries()) checkGreedy(output, CONTINUED[i]!, FLOAT32);
  }
});

test.each([1, 2])("preemption changes nothing, on %d ranks", async (tensorParallelSize) => {
  // Many that start small and grow.
  const crowd = Array<(typeof PROMPTS)[number]>(6).fill(PROMPTS[0]!);
  const drawn = { temperature: 1, seed: 5, n: 2, maxTokens: 60, ignoreEos: true };
  const all = { ...options, skipTokenizerInit: true, maxModelLen: 80 } as const;
  await using roomy = await LLM.create(E_MODEL.modelDir, all);
  await using llm = await LLM.create(E_MODEL.modelDir, {
    ...{ ...all, tensorParallelSize, overlapScheduling: true },
    // In 16 blocks: a token has 32 dimensions in 2 layers and 64 in 2, of one head that all ranks have.
    kvCacheMemoryBytes: 16 * 16 * 2 * 192 * 4,
  });
  const outputs = await llm.generate(crowd, drawn);
  expect(llm.stats().preemptions).toBeGreaterThan(0);
  const tokens = (all: typeof outputs) => all.map((o) => o.outputs.map((c) => c.tokenIds));
  expect(tokens(outputs)).toEqual(tokens(await roomy.generate(crowd, drawn)));
});

test.each([1, 2])("aborts change nothing for those that stay, on %d ranks", async (tensorParallelSize) => {
  const all = { ...options, skipTokenizerInit: true, maxModelLen: MIXED_MODEL_LEN } as const;
  const params = { ...GREEDY, maxTokens: 46 };
  const { kvCacheMemoryBytes } = smallPool(E_MODEL.modelDir, "float32");
  await using llm = await LLM.create(E_MODEL.modelDir, {
    ...{ ...all, tensorParallelSize, kvCacheMemoryBytes: 2 * kvCacheMemoryBytes },
    ...{ maxNumBatchedTokens: 48, overlapScheduling: true },
  });
  const alone: RequestOutput[] = [];
  for (const prompt of MIXED_PROMPTS) alone.push(...(await llm.generate([prompt], params)));
  expect(llm.resetPrefixCache()).toBe(true);
  const leaving = [1, 30].map((least) => {
    const controller = new AbortController();
    const { signal } = controller;
    // Some decode by then, others are in the middle of their prompts or have not begun.
    const onProgress = (done: { outputTokens: number }) => done.outputTokens >= least && controller.abort();
    return llm.generate(MIXED_PROMPTS, { maxTokens: 46, ignoreEos: true }, { signal, onProgress });
  });
  const stayed = await llm.generate(MIXED_PROMPTS, params);
  const reasons = (await Promise.all(leaving)).flat().map(({ outputs }) => outputs[0]!.finishReason);
  expect(reasons).toEqual(reasons.map(() => "abort"));
  expect(llm.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
  for (const [i, { outputs }] of stayed.entries()) {
    const [[own], [its]] = [outputs, alone[i]!.outputs];
    expect(own!.tokenIds).toEqual(its!.tokenIds);
    expect(Math.abs(own!.cumulativeLogprob! - its!.cumulativeLogprob!)).toBeLessThan(1e-3);
  }
});

test("a block is of the layers that have keys and values of their own", async () => {
  const { kvBytesPerToken } = await inspectModel(E_MODEL.modelDir);
  expect(kvBytesPerToken).toBe(2 * (2 * 32 + 2 * 64) * 2);
  const { kvBytesPerToken: ofMoe } = await inspectModel(fixture("gemma4-moe").modelDir);
  expect(ofMoe).toBe(2 * (2 * 2 * 32 + 2 * 64) * 2);
});

test("keys and values in eight bits, of layers of both kinds and of those that share them", async () => {
  const { prompt, logits, positions } = E_MODEL.cases.find(({ name }) => name === "random-100")!;
  await using llm = await LLM.create(E_MODEL.modelDir, {
    ...{ ...options, skipTokenizerInit: true, kvCacheDtype: "fp8", maxNumBatchedTokens: 32 },
  });
  const actual = await llm.logits(prompt);
  for (const [i, position] of positions.entries()) {
    const row = actual.subarray(position * E_MODEL.vocabSize, (position + 1) * E_MODEL.vocabSize);
    expect(cosine(row, logits[i]!)).toBeGreaterThan(0.99);
  }
});

test.each([
  ["gemma4-e", 1],
  ["gemma4-e", 2],
  ["gemma4", 1],
  ["gemma4-moe", 2],
] as const)("%s, quantised while it is loaded, on %d ranks", (name, ranks) =>
  checkQuantisedOnLoad(fixture(name), ranks),
);

test.each(["gemma4", "gemma4-moe"] as const)(
  "%s of a checkpoint in 4 bits: layers are of its shapes",
  async (name) => {
    using folder = temporaryFolder();
    const config = JSON.parse(readFileSync(join(fixture(name).modelDir, "config.json"), "utf8"));
    const weights = { num_bits: 4, type: "int", strategy: "group", group_size: 16, symmetric: true };
    const quantization_config = {
      ...{ quant_method: "compressed-tensors", format: "pack-quantized", ignore: ["lm_head"] },
      config_groups: { group_0: { targets: ["Linear"], weights } },
    };
    writeFileSync(folder.file("config.json"), JSON.stringify({ ...config, quantization_config }));
    await using llm = await LLM.create(folder.path, {
      ...{ ...options, skipTokenizerInit: true, loadFormat: "dummy", maxModelLen: 64 },
    });
    expect(llm.weights.format).toStartWith("int4 in groups of 16");
    const [output] = await llm.generate([{ promptTokenIds: [5, 9, 2] }], { maxTokens: 2, ignoreEos: true });
    expect(output!.outputs[0]!.tokenIds).toHaveLength(2);
  },
);
