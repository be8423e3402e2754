import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { LLM } from "octavo";
import { ConfigError } from "../../src/base/errors.ts";
import { QUANTISED_FIXTURES, type QuantisedFormat } from "./fixtures.ts";
import { FLOAT32, referenceSuite } from "./suite.ts";

setDefaultTimeout(300_000);

/** Formats whose blocks or groups of columns two ranks would cut: of 128 or 64 of the 192 inputs of down. */
const WHOLE: readonly QuantisedFormat[] = ["fp8-block", "ct-w4", "awq", "gptq-v2-8bit", "gptq-act-order"];

const options = { device: "cpu" } as const;
for (const fixture of QUANTISED_FIXTURES) {
  const canBeDivided = !WHOLE.includes(fixture.format);
  const ranks = { ...options, tensorParallelSize: 2 };
  referenceSuite(
    fixture,
    [
      { name: "whole prompts", options, maxPrompt: 600 },
      { name: "chunks of 7 tokens", options: { ...options, maxNumBatchedTokens: 7 }, maxPrompt: 64 },
      ...(canBeDivided ? [{ name: "2 ranks", options: ranks, maxPrompt: 100 }] : []),
    ],
    FLOAT32,
  );
}

describe("matrices that ranks cannot divide are refused by name, with what would work", () => {
  for (const { format, modelDir } of QUANTISED_FIXTURES.filter((each) => WHOLE.includes(each.format))) {
    test(format, async () => {
      const refused = LLM.create(modelDir, { ...options, tensorParallelSize: 2, skipTokenizerInit: true });
      const error = await refused.then(
        async (llm) => await llm.dispose(),
        (reason: unknown) => reason,
      );
      expect(error).toBeInstanceOf(ConfigError);
      expect((error as ConfigError).option).toBe("tensorParallelSize");
      expect((error as ConfigError).message).toMatch(
        format === "gptq-act-order"
          ? /o_proj.g_idx .*tensorParallelSize 1/
          : /down_proj.* 192; .*these would not: 1\b/,
      );
    });
  }
});
