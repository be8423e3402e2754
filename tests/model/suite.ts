import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import {
  type EngineOptions,
  LLM,
  type PositionLogprobs,
  type RequestOutput,
  type SamplingParams,
} from "octavo";
import {
  compareGreedy,
  compareLogprobs,
  compareTopLogprobs,
  cosine,
  maxErrorInStd,
  relativeError,
} from "./compare.ts";
import type { Fixture, FixtureCase } from "./fixtures.ts";

/** How far a device and dtype may be from the float32 reference. */
export interface Tolerance {
  /** Largest error of a logit, in standard deviations of the row. */
  readonly stds: number;
  /** ‖actual − expected‖ / ‖expected‖ of a row. */
  readonly relative: number;
  readonly cosine: number;
  readonly logprob: number;
  /** Greedy tokens may differ from the reference where its two best logits are closer than this. */
  readonly greedyGap: number;
}

/** float32 against float32: only the order of additions differs. */
export const FLOAT32: Tolerance = {
  stds: 2e-3,
  relative: 1e-3,
  cosine: 0.99999,
  logprob: 1e-3,
  greedyGap: 0.01,
};

/** One way to run the same model: everything must come out the same. */
export interface Variant {
  readonly name: string;
  readonly options: EngineOptions;
  /** Longest prompt that this variant runs, in tokens. */
  readonly maxPrompt: number;
}

const CPU = { device: "cpu" } as const;
/** Models whose sequences keep more than blocks of one kind: chunks cut wherever that may matter, on both CPU backends and on two ranks. */
export const CHUNKED_ON_CPU: readonly Variant[] = [
  { name: "whole prompts", options: CPU, maxPrompt: 600 },
  { name: "chunks of a token", options: { ...CPU, maxNumBatchedTokens: 1 }, maxPrompt: 33 },
  { name: "chunks of 64 tokens", options: { ...CPU, maxNumBatchedTokens: 64 }, maxPrompt: 600 },
  {
    name: "the reference backend, chunks of 7 tokens",
    options: { device: "cpu-reference", maxNumBatchedTokens: 7 },
    maxPrompt: 33,
  },
  { name: "2 ranks", options: { ...CPU, tensorParallelSize: 2 }, maxPrompt: 100 },
];

const GREEDY: SamplingParams = { temperature: 0, ignoreEos: true, logprobs: 0 };

/** Holds one model on one device to its reference logits, greedy continuations and log-probabilities. */
export function referenceSuite(fixture: Fixture, variants: readonly Variant[], tolerance: Tolerance): void {
  for (const variant of variants) {
    describe(`${fixture.name}, ${variant.name}`, () => {
      let llm: LLM;
      beforeAll(async () => {
        llm = await LLM.create(fixture.modelDir, { skipTokenizerInit: true, ...variant.options });
      });
      afterAll(() => {
        llm.dispose();
        // Tests live as long as their file: its memory would, too.
        llm = undefined!;
      });
      const cases = fixture.cases.filter(({ prompt }) => prompt.length <= variant.maxPrompt);

      for (const reference of cases) {
        test(`logits of ${reference.name}`, async () => {
          checkLogits(await llm.logits(reference.prompt), fixture.vocabSize, reference, tolerance);
        });
      }

      test("greedy continuations, together in one batch", async () => {
        const continued = cases.filter(({ greedy }) => greedy !== null);
        const outputs = await llm.generate(
          continued.map(({ prompt }) => ({ promptTokenIds: prompt })),
          continued.map(({ greedy }) => ({ ...GREEDY, maxTokens: greedy!.tokens.length })),
        );
        for (const [i, reference] of continued.entries()) checkGreedy(outputs[i]!, reference, tolerance);
      });

      test("log-probabilities after the prompt and of the prompt", async () => {
        const prompts = cases.map(({ prompt }) => ({ promptTokenIds: prompt }));
        const params = { ...GREEDY, maxTokens: 1, logprobs: 5, promptLogprobs: 5 };
        const outputs = await llm.generate(prompts, params);
        for (const [i, reference] of cases.entries()) {
          const { outputs: completions, promptLogprobs } = outputs[i]!;
          compareTopLogprobs(top(completions[0]!.logprobs![0]!, 5), reference.top, tolerance.logprob);
          checkPromptLogprobs(promptLogprobs!, reference, tolerance);
        }
      });
    });
  }
}

/** Holds a model whose weights become FP8 while they are loaded, on so many ranks, to its reference. */
export async function checkQuantisedOnLoad(
  { modelDir, cases, vocabSize }: Fixture,
  tensorParallelSize: number,
): Promise<void> {
  const { prompt, logits } = cases.find(({ name }) => name === "random-7")!;
  await using llm = await LLM.create(modelDir, {
    ...{ device: "cpu", skipTokenizerInit: true, tensorParallelSize, quantization: "fp8" },
  });
  // A head that is the embedding is no matrix of its own.
  expect(llm.weights.format).toMatch(/^fp8 by channels(, bfloat16)?$/);
  const actual = await llm.logits(prompt);
  expect(logits).toHaveLength(7);
  for (const [row, expected] of logits.entries())
    expect(cosine(actual.subarray(row * vocabSize, (row + 1) * vocabSize), expected)).toBeGreaterThan(0.98);
}

export function checkLogits(
  logits: Float32Array,
  vocabSize: number,
  { prompt, positions, logits: expected }: FixtureCase,
  tolerance: Tolerance,
): void {
  expect(logits.length).toBe(prompt.length * vocabSize);
  for (const [i, position] of positions.entries()) {
    const row = logits.subarray(position * vocabSize, (position + 1) * vocabSize);
    expect(maxErrorInStd(row, expected[i]!)).toBeLessThan(tolerance.stds);
    expect(relativeError(row, expected[i]!)).toBeLessThan(tolerance.relative);
    expect(cosine(row, expected[i]!)).toBeGreaterThan(tolerance.cosine);
  }
}

export function checkGreedy(output: RequestOutput, { greedy }: FixtureCase, tolerance: Tolerance): void {
  const { tokenIds, logprobs } = output.outputs[0]!;
  const agreed = compareGreedy(tokenIds, greedy!, tolerance.greedyGap);
  const chosen = tokenIds.slice(0, agreed).map((id, i) => logprobs![i]!.get(id)!.logprob);
  compareLogprobs(chosen, greedy!.logprobs.slice(0, agreed), tolerance.logprob);
}

function checkPromptLogprobs(
  actual: readonly (PositionLogprobs | null)[],
  { prompt, positions, logits }: FixtureCase,
  tolerance: Tolerance,
): void {
  expect(actual.length).toBe(prompt.length);
  expect(actual[0]).toBeNull();
  for (const [i, position] of positions.entries()) {
    const next = prompt[position + 1];
    if (next === undefined) continue;
    const entry = actual[position + 1]!.get(next)!;
    expect(Math.abs(entry.logprob - logSoftmax(logits[i]!, next))).toBeLessThan(tolerance.logprob);
    expect(actual[position + 1]!.size).toBeGreaterThanOrEqual(5);
  }
}

function logSoftmax(logits: Float32Array, index: number): number {
  const max = logits.reduce((most, x) => Math.max(most, x), -Infinity);
  const sum = logits.reduce((total, x) => total + Math.exp(x - max), 0);
  return logits[index]! - max - Math.log(sum);
}

function top(position: PositionLogprobs, count: number) {
  const best = [...position].sort(([, a], [, b]) => a.rank - b.rank).slice(0, count);
  return { ids: best.map(([id]) => id), logprobs: best.map(([, { logprob }]) => logprob) };
}
