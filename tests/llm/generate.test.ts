import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { LLM, SamplingParams } from "../../src/index.ts";
import { collect, complete, createLLM, GREEDY, only, PROMPT } from "./support.ts";

setDefaultTimeout(300_000);

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(() => llm.dispose());

const SAMPLED: SamplingParams = { seed: 5, maxTokens: 16 };

describe("generate", () => {
  test("one prompt, greedy: text, tokens and how it ended", async () => {
    const [output, ...none] = await llm.generate(PROMPT, GREEDY);
    expect(none).toEqual([]);
    expect(output).toMatchObject({ prompt: PROMPT, promptTokenIds: [418, 439, 258, 386], finished: true });
    const text = ", there was a little girl named Lily. She loved to";
    expect(output!.outputs).toMatchObject([{ index: 0, text, finishReason: "length", stopReason: null }]);
    expect(llm.tokenizer!.decode(output!.outputs[0]!.tokenIds)).toBe(text);
    expect(output!.outputs[0]).not.toHaveProperty("logprobs");
    expect(output).not.toHaveProperty("promptLogprobs");
  });

  test("many prompts of any kind come back in their order, each as if alone", async () => {
    const promptTokenIds = llm.tokenizer!.encode("The cat sat on");
    const prompts = ["Lily had a", { prompt: "One day, a dog" }, { promptTokenIds }, "The cat sat on"];
    const outputs = await llm.generate(prompts, GREEDY);
    expect(outputs.map(({ prompt }) => prompt)).toEqual([
      "Lily had a",
      "One day, a dog",
      undefined,
      "The cat sat on",
    ]);
    for (const [i, prompt] of prompts.entries())
      expect(outputs[i]!.outputs).toEqual([only(await llm.generate(prompt, GREEDY))]);
    expect(outputs[2]!.outputs).toEqual(outputs[3]!.outputs);
  });

  test("parameters can differ by prompt", async () => {
    const outputs = await llm.generate([PROMPT, PROMPT], [GREEDY, { temperature: 0, maxTokens: 3 }]);
    expect(outputs.map(({ outputs: [first] }) => first!.tokenIds.length)).toEqual([12, 3]);
    expect(outputs[0]!.outputs[0]!.text).toStartWith(outputs[1]!.outputs[0]!.text);
  });

  test("no prompts, no outputs", async () => {
    expect(await llm.generate([])).toEqual([]);
  });

  test("maxTokens is 16 when left out, and null goes on to the end of the text or the context", async () => {
    expect((await complete(llm, { temperature: 0 })).tokenIds).toHaveLength(16);
    await using small = await createLLM({ maxModelLen: 24 });
    const all = await complete(small, { temperature: 0, maxTokens: null, ignoreEos: true });
    expect([all.tokenIds.length, all.finishReason]).toEqual([20, "length"]);
  });

  test("progress counts prompts and tokens up to all of them", async () => {
    const seen: { finishedPrompts: number; totalPrompts: number; outputTokens: number }[] = [];
    await llm.generate(
      [PROMPT, "The"],
      { temperature: 0, maxTokens: 4 },
      { onProgress: (p) => seen.push(p) },
    );
    expect(seen.at(-1)).toEqual({ finishedPrompts: 2, totalPrompts: 2, outputTokens: 8 });
    expect(seen.map((p) => p.outputTokens)).toEqual(seen.map((p) => p.outputTokens).sort((a, b) => a - b));
  });

  test("timestamps are ordered", async () => {
    const before = performance.now() / 1000;
    const [output] = await llm.generate(PROMPT, GREEDY);
    const { arrivalTime, firstScheduledTime, firstTokenTime, finishedTime } = output!.metrics;
    const times = [
      before,
      arrivalTime,
      firstScheduledTime!,
      firstTokenTime!,
      finishedTime!,
      performance.now() / 1000,
    ];
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect(finishedTime!).toBeGreaterThan(firstTokenTime!);
  });

  test("two calls at once share the engine and keep apart", async () => {
    const [a, b] = await Promise.all([
      llm.generate(PROMPT, GREEDY),
      llm.generate("The cat sat on", { temperature: 0, maxTokens: 7 }),
    ]);
    expect(only(a)).toEqual(await complete(llm, GREEDY));
    expect(only(b)).toEqual(await complete(llm, { temperature: 0, maxTokens: 7 }, "The cat sat on"));
  });
});

describe("stream", () => {
  test("deltas add up to what generate gives for the same seed", async () => {
    const deltas = await collect(llm.stream(PROMPT, { ...SAMPLED, logprobs: 1 }));
    const whole = await complete(llm, { ...SAMPLED, logprobs: 1 });
    expect(deltas.length).toBeGreaterThan(8);
    expect(deltas.map(({ text }) => text).join("")).toBe(whole.text);
    expect(deltas.flatMap(({ tokenIds }) => tokenIds)).toEqual([...whole.tokenIds]);
    expect(deltas.flatMap(({ logprobs }) => logprobs!)).toEqual([...whole.logprobs!]);
    expect(deltas.map(({ finishReason }) => finishReason)).toEqual([
      ...deltas.slice(1).map(() => null),
      whole.finishReason,
    ]);
  });

  test("cumulative items grow to the whole", async () => {
    const params = { ...SAMPLED, logprobs: 1, outputKind: "cumulative" as const };
    const items = await collect(llm.stream(PROMPT, params));
    const whole = await complete(llm, SAMPLED);
    expect(items.length).toBeGreaterThan(8);
    for (const [i, { text, tokenIds, logprobs }] of items.entries()) {
      expect(whole.text).toStartWith(text);
      expect(whole.tokenIds.slice(0, tokenIds.length)).toEqual([...tokenIds]);
      expect(logprobs).toHaveLength(tokenIds.length);
      if (i > 0) expect(tokenIds.length).toBeGreaterThan(items[i - 1]!.tokenIds.length);
      if (i > 0) expect(text.length).toBeGreaterThan(items[i - 1]!.text.length);
    }
    expect(items.at(-1)).toMatchObject({ text: whole.text, finishReason: "length" });
  });

  test("finalOnly is one item a completion", async () => {
    const items = await collect(llm.stream(PROMPT, { ...SAMPLED, n: 2, outputKind: "finalOnly" }));
    const [output] = await llm.generate(PROMPT, { ...SAMPLED, n: 2 });
    const byIndex = items.toSorted((a, b) => a.index - b.index);
    expect(byIndex.map(({ text }) => text)).toEqual(output!.outputs.map(({ text }) => text));
    expect(byIndex.map(({ tokenIds }) => tokenIds)).toEqual(output!.outputs.map(({ tokenIds }) => tokenIds));
  });

  test("the deltas of several completions carry their index", async () => {
    const deltas = await collect(llm.stream(PROMPT, { ...SAMPLED, n: 3 }));
    const [output] = await llm.generate(PROMPT, { ...SAMPLED, n: 3 });
    for (const { index, text } of output!.outputs) {
      const own = deltas.filter((delta) => delta.index === index);
      expect(own.map((delta) => delta.text).join("")).toBe(text);
      expect(own.filter(({ finishReason }) => finishReason !== null)).toHaveLength(1);
    }
  });

  test("the kind of output does not change what generate returns", async () => {
    const whole = await complete(llm, SAMPLED);
    for (const outputKind of ["cumulative", "finalOnly"] as const)
      expect(await complete(llm, { ...SAMPLED, outputKind })).toEqual(whole);
  });
});

describe("seeds", () => {
  test("n = 3 gives three different completions, the same each time; the first is that of n = 1", async () => {
    const [first] = await llm.generate(PROMPT, { ...SAMPLED, n: 3 });
    const [second] = await llm.generate(PROMPT, { ...SAMPLED, n: 3 });
    expect(second!.outputs).toEqual(first!.outputs);
    expect(first!.outputs.map(({ index }) => index)).toEqual([0, 1, 2]);
    expect(new Set(first!.outputs.map(({ text }) => text)).size).toBe(3);
    expect(first!.outputs[0]).toEqual(await complete(llm, SAMPLED));
  });

  test("the tokens are those of the request alone, whatever runs beside it", async () => {
    const alone = await complete(llm, SAMPLED);
    const others = Array.from({ length: 15 }, (_, i) => `Story ${i} is about a ${"big ".repeat(i)}dog`);
    const params = others.map((_, i): SamplingParams => ({ seed: 100 + i, maxTokens: 4 + i }));
    const outputs = await llm.generate(
      [...others.slice(0, 7), PROMPT, ...others.slice(7)],
      [...params.slice(0, 7), SAMPLED, ...params.slice(7)],
    );
    expect(outputs[7]!.outputs).toEqual([alone]);
  });

  test("without a request's seed, engines of equal seed agree and others do not", async () => {
    const run = async (seed: number) => {
      await using other = await createLLM({ seed });
      const outputs = await other.generate([PROMPT, PROMPT], { maxTokens: 12 });
      return outputs.map(({ outputs: [first] }) => first!.text);
    };
    const [a, b, c] = [await run(3), await run(3), await run(4)];
    expect(b).toEqual(a!);
    expect(c).not.toEqual(a!);
    expect(a![0]).not.toBe(a![1]!);
  });

  test("large and negative seeds are seeds like any other", async () => {
    const texts = [];
    for (const seed of [2n ** 63n - 1n, -(2n ** 63n), -5, 0])
      texts.push((await complete(llm, { ...SAMPLED, seed })).text);
    expect(new Set(texts).size).toBe(4);
    expect((await complete(llm, { ...SAMPLED, seed: -5n })).text).toBe(texts[2]!);
  });
});
