import { expect } from "bun:test";
import { type EngineOptions, LLM } from "octavo";
import { cosine, maxErrorInStd, relativeError } from "../model/compare.ts";
import type { Fixture } from "../model/fixtures.ts";
import type { Tolerance } from "../model/suite.ts";

const NEW_TOKENS = 12;

/**
 * Holds a model that no reference is of, such as one whose weights are rounded while they are loaded, to what the CPU computes of it: all
 * logits of the fixture's prompts with what is generated after them, and that in the odds of the CPU.
 * @param options of the GPU; those of weights are the CPU's, too
 * @param maxPrompt of the prompts, in tokens: fixtures leave no doubt which experts a token has, but with weights that are rounded routers
 * may be as unsure as 16 bits, at some token of a long prompt
 */
export async function expectLikeCpu(
  { modelDir, vocabSize, cases }: Fixture,
  options: EngineOptions,
  tolerance: Tolerance,
  maxPrompt = Infinity,
): Promise<void> {
  const chosen = cases.filter(({ prompt }) => prompt.length <= maxPrompt);
  const { quantization, tensorParallelSize = 1 } = options;
  // Ranks round by the largest of their own part.
  const weights = { skipTokenizerInit: true, tensorParallelSize, ...(quantization && { quantization }) };
  await using gpu = await LLM.create(modelDir, { ...weights, ...options });
  await using cpu = await LLM.create(modelDir, { ...weights, device: "cpu" });
  // "fp8 by channels, float16": what is not quantised has the dtype that is computed in.
  const [format, expectedFormat] = [gpu, cpu].map((llm) => llm.weights.format.split(",")[0]);
  expect(format).toBe(expectedFormat!);
  const prompts = chosen.map(({ prompt }) => ({ promptTokenIds: prompt }));
  const params = { temperature: 0, ignoreEos: true, maxTokens: NEW_TOKENS, logprobs: 0 };
  const outputs = await gpu.generate(prompts, params);
  for (const [i, { outputs: completions }] of outputs.entries()) {
    const [{ tokenIds, logprobs }] = completions as [(typeof completions)[number]];
    const prompt = chosen[i]!.prompt;
    const tokens = [...prompt, ...tokenIds];
    const [actual, expected] = [await gpu.logits(tokens), await cpu.logits(tokens)];
    const rowOf = (logits: Float32Array, at: number) => logits.subarray(at * vocabSize, (at + 1) * vocabSize);
    for (const at of tokens.keys()) {
      const [row, wanted] = [rowOf(actual, at), rowOf(expected, at)];
      expect(maxErrorInStd(row, wanted)).toBeLessThan(tolerance.stds);
      expect(relativeError(row, wanted)).toBeLessThan(tolerance.relative);
      expect(cosine(row, wanted)).toBeGreaterThan(tolerance.cosine);
    }
    for (const [drawn, token] of tokenIds.entries()) {
      const row = rowOf(expected, prompt.length + drawn - 1);
      const most = Math.max(...row);
      expect(most - row[token]!).toBeLessThan(tolerance.greedyGap);
      const odds = row[token]! - most - Math.log(row.reduce((sum, logit) => sum + Math.exp(logit - most), 0));
      expect(Math.abs(logprobs![drawn]!.get(token)!.logprob - odds)).toBeLessThan(tolerance.logprob);
    }
  }
}
