import { expect, setDefaultTimeout, test } from "bun:test";
import { type EngineOptions, LLM, type SamplingParams } from "octavo";
import { describeGpu } from "./gpu.ts";

setDefaultTimeout(300_000);

const PROMPT = "Once upon a time";
/** Every other request is under a grammar; all have the same length, so that nobody's end changes a batch. */
const PARAMS = Array.from(
  { length: 24 },
  (_, i): SamplingParams => ({
    ...{ temperature: 1.2, seed: i, maxTokens: 48, ignoreEos: true },
    ...(i % 3 === 1 && { topP: 0.9 }),
    ...(i % 4 === 3 && { logprobs: 2 }),
    ...(i % 2 === 1 && { structuredOutputs: { regex: "(?:[a-m]{1,6} )*" } }),
  }),
);

async function outputsOf(options: EngineOptions, params: readonly SamplingParams[] = PARAMS) {
  await using llm = await LLM.create(undefined, {
    ...{ device: "cuda", kvCacheMemoryBytes: 2 ** 28, batchInvariant: true },
    ...options,
  });
  const outputs = await llm.generate(
    params.map(() => PROMPT),
    params,
  );
  return outputs.map(({ outputs: [completion] }) => ({
    text: completion!.text,
    tokens: [...completion!.tokenIds],
  }));
}

describeGpu("rows under a grammar, beside others", () => {
  test("keep to it, in steps replayed and eager, overlapped and not, and change nobody else's tokens", async () => {
    const overlapped = await outputsOf({ overlapScheduling: true });
    for (const [i, { text }] of overlapped.entries())
      if (i % 2 === 1) expect(text).toMatch(/^(?:[a-m]{1,6} )*[a-m]{0,6}$/);
    expect(await outputsOf({ overlapScheduling: false })).toEqual(overlapped);
    expect(await outputsOf({ enforceEager: true })).toEqual(overlapped);
    const plain = overlapped.filter((_, i) => i % 2 === 0);
    const alone = PARAMS.filter((_, i) => i % 2 === 0);
    expect(await outputsOf({}, alone)).toEqual(plain);
  });
});
