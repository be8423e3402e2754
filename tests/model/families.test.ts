import { setDefaultTimeout } from "bun:test";
import { FAMILY_FIXTURES } from "./fixtures.ts";
import { referenceSuite, type Tolerance } from "./suite.ts";

setDefaultTimeout(300_000);

/** float32 against float32: only the order of additions differs. */
const FLOAT32: Tolerance = { stds: 2e-3, relative: 1e-3, cosine: 0.99999, logprob: 1e-3, greedyGap: 0.01 };

const options = { device: "cpu" } as const;
for (const fixture of FAMILY_FIXTURES)
  referenceSuite(
    fixture,
    [
      { name: "whole prompts", options, maxPrompt: 100 },
      { name: "chunks of 7 tokens", options: { ...options, maxNumBatchedTokens: 7 }, maxPrompt: 33 },
      { name: "2 ranks", options: { ...options, tensorParallelSize: 2 }, maxPrompt: 100 },
    ],
    FLOAT32,
  );
