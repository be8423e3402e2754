import { expect, setDefaultTimeout, test } from "bun:test";
import { LLM } from "octavo";
import { fixture } from "../model/fixtures.ts";
import { MIXED_MODEL_LEN, MIXED_NAMES, MIXED_PROMPTS, smallPool } from "../model/mixed-windows.ts";
import { describeGpu } from "./gpu.ts";
import { BFLOAT16, EXPERTS_BFLOAT16 } from "./tolerances.ts";

setDefaultTimeout(300_000);

const BASE = { skipTokenizerInit: true, maxModelLen: MIXED_MODEL_LEN } as const;

describeGpu("layers with and without windows take turns on the GPU", () => {
  test.each(
    MIXED_NAMES.flatMap((name) => [
      [name, "captured", false] as const,
      [name, "eager, with a cache in eight bits", true] as const,
    ]),
  )("%s, %s: a pool of one sequence, twice over, gives the CPU's odds", async (name, _, isEager) => {
    const { modelDir } = fixture(name);
    const { kvCacheMemoryBytes } = smallPool(modelDir, "bfloat16");
    await using cpu = await LLM.create(modelDir, {
      ...{ ...BASE, device: "cpu" },
      ...(isEager && { kvCacheDtype: "fp8" }),
    });
    await using gpu = await LLM.create(modelDir, {
      ...{ ...BASE, device: "cuda", dtype: "bfloat16", maxNumBatchedTokens: 48 },
      ...(isEager
        ? { enforceEager: true, kvCacheDtype: "fp8", kvCacheMemoryBytes: kvCacheMemoryBytes / 2 }
        : { kvCacheMemoryBytes }),
    });
    const params = { temperature: 0, ignoreEos: true, logprobs: 0, maxTokens: 24 };
    const { logprob: allowed } = name === "gpt-oss" || isEager ? EXPERTS_BFLOAT16 : BFLOAT16;
    for (let round = 0; round < 2; round++) {
      const outputs = await gpu.generate(MIXED_PROMPTS, params);
      for (const [i, { outputs: completions }] of outputs.entries()) {
        const { tokenIds, logprobs } = completions[0]!;
        const prompt = MIXED_PROMPTS[i]!.promptTokenIds;
        const whole = { promptTokenIds: [...prompt, ...tokenIds] };
        const [scored] = await cpu.generate([whole], { maxTokens: 1, promptLogprobs: 0 });
        for (const [at, token] of tokenIds.entries()) {
          const odds = scored!.promptLogprobs![prompt.length + at]!.get(token)!.logprob;
          expect(Math.abs(logprobs![at]!.get(token)!.logprob - odds)).toBeLessThan(allowed);
        }
      }
    }
    expect(gpu.stats().preemptions + gpu.stats().prefixHits).toBeGreaterThan(0);
  });
});
