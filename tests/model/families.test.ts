import { expect, setDefaultTimeout, test } from "bun:test";
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { LLM } from "octavo";
import { temporaryFolder } from "../support.ts";
import { FAMILY_FIXTURES, fixture } from "./fixtures.ts";
import { checkQuantisedOnLoad, FLOAT32, referenceSuite } from "./suite.ts";

setDefaultTimeout(300_000);

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
  (name, ranks) => checkQuantisedOnLoad(fixture(name), ranks),
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
