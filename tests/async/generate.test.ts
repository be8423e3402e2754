import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  AsyncLLM,
  type CompletionDelta,
  LLM,
  type Prompt,
  type RequestOutput,
  type StepReport,
} from "../../src/index.ts";
import {
  collect,
  createAsyncLLM,
  expectIdle,
  FAST_MODEL,
  FAST_OPTIONS,
  GREEDY,
  PROMPT,
  rejection,
  SMALL,
} from "./support.ts";

setDefaultTimeout(300_000);

let llm: LLM;
let asyncLLM: AsyncLLM;
beforeAll(async () => {
  [llm, asyncLLM] = await Promise.all([LLM.create(undefined, SMALL), createAsyncLLM()]);
});
afterAll(async () => {
  llm.dispose();
  await asyncLLM.dispose();
});

const PROMPTS = [PROMPT, "The cat sat on", "Lily and Tom", "One day a bird", "It was a sunny"];
const SAMPLED = { temperature: 1, seed: 5, maxTokens: 8 };

/** What does not depend on when and where it ran. */
function content({ requestId: _, metrics: __, numCachedTokens: ___, ...rest }: RequestOutput) {
  return rest;
}

const joined = (deltas: readonly CompletionDelta[], index = 0) =>
  deltas
    .filter((delta) => delta.index === index)
    .map(({ text }) => text)
    .join("");

test("what is known of the model", () => {
  const { model, maxModelLen, device, modelConfig, config, failure } = asyncLLM;
  expect({ model, maxModelLen, device, modelConfig }).toEqual({
    ...{ model: llm.model, maxModelLen: llm.maxModelLen, device: "cpu", modelConfig: llm.modelConfig },
  });
  expect(config).toEqual(llm.config);
  expect(asyncLLM.cacheConfig).toMatchObject({ blockSize: 16 });
  expect(failure).toBeUndefined();
});

describe("the same as LLM", () => {
  test("greedy, many at once", async () => {
    const outputs = await Promise.all(PROMPTS.map((prompt) => asyncLLM.generate(prompt, GREEDY)));
    expect(outputs.map(content)).toEqual((await llm.generate(PROMPTS, GREEDY)).map(content));
    await expectIdle(asyncLLM);
  });

  const cases: readonly (readonly [string, object])[] = [
    ["n completions", { ...SAMPLED, n: 3 }],
    ["log-probabilities", { ...SAMPLED, logprobs: 3, promptLogprobs: 2 }],
    ["log-probabilities of n completions", { ...SAMPLED, n: 2, logprobs: 0 }],
    ["a stop string", { ...GREEDY, stop: " little" }],
    ["bad words", { ...GREEDY, badWords: ["there", "little girl"] }],
    ["a logit bias, a wide seed", { ...SAMPLED, logitBias: { 300: 5 }, seed: 2n ** 62n + 1n }],
    ["without text", { ...SAMPLED, detokenize: false }],
  ];
  test.each([...cases])("%s", async (_, params) => {
    const [expected] = await llm.generate(PROMPT, params);
    expect(content(await asyncLLM.generate(PROMPT, params))).toEqual(content(expected!));
  });

  test("token ids", async () => {
    const prompt = { promptTokenIds: [300, 400, 500] };
    const [expected] = await llm.generate(prompt, GREEDY);
    expect(content(await asyncLLM.generate(prompt, GREEDY))).toEqual(content(expected!));
  });

  test("a conversation, with its options", async () => {
    const messages = [
      { role: "user", content: "Tell me a story" },
      { role: "assistant", content: "Once upon" },
    ];
    const chat = { continueFinalMessage: true };
    const [expected] = await llm.chat(messages, GREEDY, chat);
    expect(content(await asyncLLM.generate({ messages, chat }, GREEDY))).toEqual(content(expected!));
    const stream = await asyncLLM.submit({ messages }, { temperature: 0 });
    const [request] = stream.requests;
    expect(request!.sampling.maxTokens).toBeUndefined();
    stream.abort();
    expect(request!.prompt).toBe(llm.renderChat(messages));
  });

  test("a stream of each output kind", async () => {
    for (const outputKind of ["delta", "cumulative", "finalOnly"] as const) {
      const params = { ...GREEDY, outputKind, logprobs: 0 };
      // What a slow reader has not taken is merged, so the pieces are the machine's affair.
      const whole = (deltas: readonly CompletionDelta[]) => ({
        ...deltas.at(-1)!,
        requestId: "",
        ...(outputKind === "delta" && {
          text: joined(deltas),
          tokenIds: deltas.flatMap(({ tokenIds }) => tokenIds),
          logprobs: deltas.flatMap(({ logprobs }) => logprobs!),
        }),
      });
      const expected = whole(await collect(llm.stream(PROMPT, params)));
      expect(whole(await collect(asyncLLM.stream(PROMPT, params)))).toEqual(expected);
    }
  });
});

test("deltas join to the whole, for each of n completions", async () => {
  const params = { ...SAMPLED, n: 3, maxTokens: 12 };
  const whole = await asyncLLM.generate(PROMPT, params);
  const deltas = await collect(asyncLLM.stream(PROMPT, params));
  for (const { index, text, tokenIds, finishReason } of whole.outputs) {
    expect(joined(deltas, index)).toBe(text);
    const own = deltas.filter((delta) => delta.index === index);
    expect(own.flatMap((delta) => delta.tokenIds)).toEqual([...tokenIds]);
    expect(own.map((delta) => delta.finishReason)).toEqual([...own.slice(1).map(() => null), finishReason]);
  }
});

test("what a reader has not taken comes as one delta", async () => {
  const stream = await asyncLLM.submit(PROMPT, { ...GREEDY, logprobs: 1 });
  await asyncLLM.drain(10);
  const deltas = await collect(stream);
  const whole = await asyncLLM.generate(PROMPT, { ...GREEDY, logprobs: 1 });
  expect(deltas).toHaveLength(1);
  expect({ ...deltas[0], index: 0 }).toMatchObject({
    ...{ text: whole.outputs[0]!.text, tokenIds: whole.outputs[0]!.tokenIds, finishReason: "length" },
  });
  expect(deltas[0]!.logprobs).toEqual([...whole.outputs[0]!.logprobs!]);
});

describe("several prompts at once", () => {
  const prompts = [PROMPT, { promptTokenIds: [300, 400, 500] }, "The little dog"];

  test("give their outputs in order, each with its own parameters", async () => {
    const params = [GREEDY, { ...SAMPLED, n: 2 }, { ...GREEDY, maxTokens: 3 }];
    const expected = await llm.generate(prompts as Prompt[], params);
    expect((await asyncLLM.generate(prompts, params)).map(content)).toEqual(expected.map(content));
    expect(await asyncLLM.generate([])).toEqual([]);
    expect(await rejection(asyncLLM.generate(prompts, [GREEDY]))).toMatchObject({ param: "params" });
  });

  test("are one stream: a reader that pauses gets one delta for each completion, and nothing is lost", async () => {
    const params = { ...SAMPLED, n: 2, maxTokens: 24 };
    const expected = await asyncLLM.generate(prompts, params);
    const stream = await asyncLLM.submit(prompts, params);
    const iterator = stream[Symbol.asyncIterator]();
    const deltas = [(await iterator.next()).value!];
    await asyncLLM.drain(60);
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) deltas.push(next.value);
    expect(deltas).toHaveLength(1 + 3 * 2);
    for (const [i, { id }] of stream.requests.entries()) {
      const own = deltas.filter(({ requestId }) => requestId === id);
      for (const { index, text, tokenIds } of expected[i]!.outputs) {
        expect(joined(own, index)).toBe(text);
        const tokens = own.filter((delta) => delta.index === index).flatMap((delta) => delta.tokenIds);
        expect(tokens).toEqual([...tokenIds]);
      }
    }
  });

  test("are refused together", async () => {
    const { steps } = asyncLLM.stats;
    const error = await rejection(asyncLLM.submit([PROMPT, { promptTokenIds: [-1] }, PROMPT]));
    expect(error).toMatchObject({ code: "invalid_token_id" });
    expect(asyncLLM.stats.steps).toBe(steps);
    await expectIdle(asyncLLM);
  });
});

test("times are on one clock and in order", async () => {
  const { metrics } = await asyncLLM.generate(PROMPT, GREEDY);
  const { arrivalTime, firstScheduledTime, firstTokenTime, finishedTime } = metrics;
  const times = [arrivalTime, firstScheduledTime!, firstTokenTime!, finishedTime!];
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(finishedTime! - arrivalTime).toBeWithin(0, 5);
});

test("a stream knows before its first delta that its prompt is being computed", async () => {
  await using llm = await AsyncLLM.create(FAST_MODEL, { ...FAST_OPTIONS, maxNumBatchedTokens: 8 });
  const promptTokenIds = Array.from({ length: 24 }, (_, i) => 3 + i);
  const known: boolean[] = [];
  const stream = await llm.submit({ promptTokenIds }, { temperature: 0, maxTokens: 1 });
  const [request] = stream.requests;
  llm.onStep(() => known.push(request!.metrics.firstScheduledTime !== undefined));
  expect(request!.metrics.firstScheduledTime).toBeUndefined();
  await collect(stream);
  expect(known).toEqual([true, true, true]);
  expect(llm.dtype).toBe("float32");
});

test("cached tokens are counted, and forgotten on demand", async () => {
  const prompt =
    "The little dog ran to the park to play with his big red ball and his friend Tom was there too";
  await asyncLLM.generate(prompt, GREEDY);
  expect((await asyncLLM.generate(prompt, GREEDY)).numCachedTokens).toBe(16);
  expect(asyncLLM.stats.cachedBlocks).toBeGreaterThan(0);
  expect(await asyncLLM.resetPrefixCache()).toBe(true);
  expect(asyncLLM.stats.cachedBlocks).toBe(0);
  expect((await asyncLLM.generate(prompt, GREEDY)).numCachedTokens).toBe(0);
});

test("steps are reported, each finished request once, until unsubscribed", async () => {
  const reports: StepReport[] = [];
  const stop = asyncLLM.onStep((report) => reports.push(report));
  const stream = await asyncLLM.submit(PROMPT, { ...SAMPLED, n: 2 });
  const { id, promptTokenIds, metrics: submitted } = stream.requests[0]!;
  await collect(stream);
  const { metrics } = stream.requests[0]!;
  stop();
  await asyncLLM.generate(PROMPT, GREEDY);
  const batched = reports.reduce((sum, report) => sum + report.numBatchedTokens, 0);
  expect(batched).toBeWithin(promptTokenIds.length + 2 * 7, 2 * promptTokenIds.length + 2 * 7 + 1);
  expect(reports.at(-1)!.stats).toMatchObject({ running: 0, waiting: 0 });
  expect(reports.flatMap(({ finished }) => finished)).toEqual([
    {
      ...{ id, finishReasons: ["length", "length"], promptTokens: promptTokenIds.length },
      ...{ cachedTokens: 0, generationTokens: 16, completionTokens: [8, 8] },
      ...{ maxTokens: 8, n: 2, metrics },
    },
  ]);
  expect(submitted).toEqual({ arrivalTime: metrics.arrivalTime });
  expect(metrics.finishedTime).toBeGreaterThan(metrics.arrivalTime);
});

describe("tokens and text", () => {
  test("there and back", async () => {
    const { prompt, tokenIds, tokenStrings } = await asyncLLM.tokenize("Hello there");
    expect(prompt).toBe("Hello there");
    expect(tokenIds).toEqual(llm.tokenizer!.encode("Hello there"));
    expect(tokenStrings).toEqual(["Hello", "Ġthere"]);
    expect(await asyncLLM.detokenize(tokenIds)).toBe("Hello there");
  });

  test("of a conversation and of token ids", async () => {
    const messages = [{ role: "user", content: "Hi" }];
    const { prompt, tokenIds } = await asyncLLM.tokenize({ messages, chat: { addGenerationPrompt: false } });
    expect(prompt).toBe(llm.renderChat(messages, { addGenerationPrompt: false }));
    expect(tokenIds).toEqual(llm.tokenizer!.encode(prompt!, { addSpecialTokens: false }));
    const { tokenStrings } = await asyncLLM.tokenize({ promptTokenIds: tokenIds });
    expect(tokenStrings[0]).toBe("<|im_start|>");
  });

  test("the last tokens of a prompt, or as many as fit", async () => {
    const promptTokenIds = Array.from({ length: 1100 }, (_, i) => 300 + i);
    const submit = async (truncatePromptTokens: number) => {
      const stream = await asyncLLM.submit({ promptTokenIds }, { maxTokens: 4 }, { truncatePromptTokens });
      stream.abort();
      return stream.requests[0]!.promptTokenIds;
    };
    expect(await submit(3)).toEqual([1397, 1398, 1399]);
    expect(await submit(-1)).toEqual(promptTokenIds.slice(-1020));
    const text = "a dog ".repeat(20_000);
    const stream = await asyncLLM.submit(text, { maxTokens: 1 }, { truncatePromptTokens: 2 });
    expect(stream.requests[0]!.promptTokenIds).toHaveLength(2);
    expect(await rejection(submit(0))).toMatchObject({ param: "truncatePromptTokens" });
    expect((await asyncLLM.tokenize("Hello there", { truncatePromptTokens: 1 })).tokenStrings).toEqual([
      "Ġthere",
    ]);
    await expectIdle(asyncLLM);
  });
});

test("draining waits for the last of several", async () => {
  const limits = [2, 40].map((maxTokens) => ({ ...GREEDY, maxTokens, ignoreEos: true }));
  await Promise.all(limits.map((params) => asyncLLM.submit(PROMPT, params)));
  await asyncLLM.drain(60);
  expect(asyncLLM.numUnfinished).toBe(0);
});

test("draining waits for what runs, and no longer than asked", async () => {
  const stream = await asyncLLM.submit(PROMPT, { ...GREEDY, maxTokens: 100, ignoreEos: true });
  expect(asyncLLM.numUnfinished).toBe(1);
  expect(asyncLLM.secondsWithoutProgress).toBeWithin(0, 2);
  expect(await rejection(asyncLLM.drain(0.05))).toMatchObject({ name: "TimeoutError" });
  stream.abort();
  await asyncLLM.drain(5);
  await expectIdle(asyncLLM);
});
