import { setDefaultTimeout } from "bun:test";
import { FIXTURES, GGUF_FIXTURES } from "./fixtures.ts";
import { FLOAT32, referenceSuite, type Variant } from "./suite.ts";

setDefaultTimeout(300_000);

const options = { device: "cpu" } as const;
const VARIANTS: readonly Variant[] = [
  { name: "whole prompts", options, maxPrompt: 600 },
  { name: "chunks of 64 tokens", options: { ...options, maxNumBatchedTokens: 64 }, maxPrompt: 600 },
  { name: "chunks of 7 tokens", options: { ...options, maxNumBatchedTokens: 7 }, maxPrompt: 257 },
  { name: "one token at a time", options: { ...options, maxNumBatchedTokens: 1 }, maxPrompt: 64 },
  { name: "blocks of 1 token", options: { ...options, blockSize: 1 }, maxPrompt: 100 },
  { name: "the reference backend", options: { device: "cpu-reference" }, maxPrompt: 257 },
  { name: "overlapped steps", options: { ...options, overlapScheduling: true }, maxPrompt: 257 },
];

/** The embedded model takes as long as all others together; what the variants change does not depend on sizes. */
const OF_EMBEDDED: readonly Variant[] = VARIANTS.flatMap((variant) => {
  if (variant.name === "whole prompts") return [variant];
  return variant.name === "the reference backend" ? [{ ...variant, maxPrompt: 64 }] : [];
});

for (const fixture of FIXTURES)
  referenceSuite(fixture, fixture.name === "tiny-stories" ? OF_EMBEDDED : VARIANTS, FLOAT32);
for (const fixture of GGUF_FIXTURES) referenceSuite(fixture, VARIANTS.slice(0, 2), FLOAT32);
