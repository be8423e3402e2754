import { expect, setDefaultTimeout, spyOn, test } from "bun:test";
import { CapturedStep } from "../../src/backend/simd/captured-step.ts";
import type { SamplingParams } from "../../src/base/sampling-params.ts";
import { LLM } from "../../src/llm/llm.ts";
import { type FixtureName, fixture } from "./fixtures.ts";

setDefaultTimeout(300_000);

/** What models have that a step captures in its own way: windows, caps, sinks, layers that only read, experts, states, codes. */
const MODELS: readonly FixtureName[] = [
  ...(["qwen3", "gpt-neox", "olmo2", "gemma2", "gemma3", "gemma4-e", "gpt-oss"] as const),
  ...(["qwen3-moe", "qwen3-5-moe", "quantised-ct-w4", "gguf-qwen3"] as const),
];

/** Lengths of prompts, and of what follows them: rows join and leave, and later prompts are longer than all before. */
const REQUESTS = [
  [3, 9],
  [17, 25],
  [40, 4],
  [1, 30],
  [90, 12],
  [33, 40],
] as const;

async function textsOf(name: FixtureName, enforceEager: boolean, threads: number) {
  const { modelDir, vocabSize } = fixture(name);
  await using llm = await LLM.create(modelDir, {
    ...{
      device: "cpu",
      kvCacheMemoryBytes: 2 ** 24,
      maxModelLen: 192,
      maxNumSeqs: 4,
      maxNumBatchedTokens: 64,
    },
    ...{ threads, enforceEager, skipTokenizerInit: true },
  });
  const prompts = REQUESTS.map(([length], i) => ({
    promptTokenIds: Array.from({ length }, (_, t) => (7 * t + 31 * i + 3) % vocabSize),
  }));
  const params = REQUESTS.map(
    ([, maxTokens], i): SamplingParams => ({
      ...{ maxTokens, ignoreEos: true, seed: i, temperature: i === 2 ? 0 : 0.9 },
      // Plain rows, rows with logits of their own, and some of each.
      ...(i % 2 === 1 && { topK: 40, repetitionPenalty: 1.1, logprobs: 3 }),
    }),
  );
  const outputs = await llm.generate(prompts, params);
  return outputs.map(({ outputs: [completion] }) => ({
    tokenIds: [...completion!.tokenIds],
    logprobs: completion!.logprobs?.map((position) => [...position]),
  }));
}

test.each(MODELS)("%s: captured steps give what the same ops give one by one", async (name) => {
  const launch = spyOn(CapturedStep.prototype, "launch");
  try {
    const eager = await textsOf(name, true, 1);
    expect(launch).not.toHaveBeenCalled();
    expect(await textsOf(name, false, 1)).toEqual(eager);
    expect(launch.mock.calls.length).toBeGreaterThan(30);
    expect(await textsOf(name, false, 2)).toEqual(eager);
    expect(new Set(eager.flatMap(({ tokenIds }) => tokenIds)).size).toBeGreaterThan(10);
  } finally {
    launch.mockRestore();
  }
});
