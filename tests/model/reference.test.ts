import { setDefaultTimeout } from "bun:test";
import { FIXTURES, type Fixture, GGUF_FIXTURES } from "./fixtures.ts";
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

/**
 * The embedded model takes as long as all others together; what the variants change does not depend on sizes. On the reference backend,
 * which takes half of the time, long prompts are the first model's: in none of the others do they meet other code.
 */
function variantsOf({ name }: Fixture): readonly Variant[] {
  const isEmbedded = name === "tiny-stories";
  const wanted = isEmbedded ? ["whole prompts", "the reference backend"] : VARIANTS.map((each) => each.name);
  return VARIANTS.filter((variant) => wanted.includes(variant.name)).map((variant) => {
    if (variant.name !== "the reference backend" || name === FIXTURES[0]!.name) return variant;
    return { ...variant, maxPrompt: isEmbedded ? 33 : 100 };
  });
}

for (const fixture of FIXTURES) referenceSuite(fixture, variantsOf(fixture), FLOAT32);
for (const fixture of GGUF_FIXTURES) referenceSuite(fixture, VARIANTS.slice(0, 2), FLOAT32);
