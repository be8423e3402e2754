import { expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM } from "octavo";
import { temporaryFolder } from "../support.ts";
import { cosine } from "./compare.ts";
import { FAMILY_FIXTURES, fixture } from "./fixtures.ts";
import { referenceSuite, type Tolerance } from "./suite.ts";

setDefaultTimeout(300_000);

/** float32 against float32: only the order of additions differs. */
const FLOAT32: Tolerance = { stds: 2e-3, relative: 1e-3, cosine: 0.99999, logprob: 1e-3, greedyGap: 0.01 };

const options = { device: "cpu" } as const;
const CHUNKS = { device: "cpu-reference", maxNumBatchedTokens: 7 } as const;
for (const fixture of FAMILY_FIXTURES)
  referenceSuite(
    fixture,
    [
      { name: "whole prompts", options, maxPrompt: 100 },
      { name: "the reference backend, chunks of 7 tokens", options: CHUNKS, maxPrompt: 33 },
      { name: "2 ranks", options: { ...options, tensorParallelSize: 2 }, maxPrompt: 100 },
    ],
    FLOAT32,
  );

test.each([
  ["phi3", 1],
  ["phi3", 2],
  ["gpt-neox", 2],
] as const)(
  "%s, quantised while it is loaded, on %d ranks: rows of fused tensors, and a head in floats",
  async (name, size) => {
    const { modelDir, cases, vocabSize } = fixture(name);
    const { prompt, logits } = cases.find((each) => each.name === "random-7")!;
    const ranks = { ...options, skipTokenizerInit: true, tensorParallelSize: size };
    await using llm = await LLM.create(modelDir, { ...ranks, quantization: "fp8" });
    expect(llm.weights.format).toBe("fp8 by channels, bfloat16");
    const actual = await llm.logits(prompt);
    for (const [row, expected] of logits.entries())
      expect(cosine(actual.subarray(row * vocabSize, (row + 1) * vocabSize), expected)).toBeGreaterThan(0.98);
  },
);

test("what divides logits does not divide hidden states", async () => {
  using folder = temporaryFolder();
  const { modelDir, cases } = fixture("granite");
  cpSync(modelDir, folder.path, { recursive: true });
  const config = JSON.parse(readFileSync(join(modelDir, "config.json"), "utf8"));
  writeFileSync(folder.file("config.json"), JSON.stringify({ ...config, logits_scaling: 1 }));
  const [vector, undivided] = await Promise.all(
    [modelDir, folder.path].map(async (path) => {
      await using llm = await LLM.create(path, { ...options, skipTokenizerInit: true });
      return await llm.embed({ promptTokenIds: cases[1]!.prompt }, { normalize: false });
    }),
  );
  expect(vector).toEqual(undivided!);
});
