import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { getEventListeners } from "node:events";
import { readdirSync } from "node:fs";
import {
  ConfigError,
  ContextLengthError,
  EngineDeadError,
  InvalidRequestError,
  LLM,
  type Prompt,
  type SamplingParams,
} from "../../src/index.ts";
import { fixture } from "../model/fixtures.ts";
import { temporaryFolder } from "../support.ts";
import {
  collect,
  complete,
  createLLM,
  expectUsable,
  GREEDY,
  only,
  PROMPT,
  rejection,
  SMALL,
} from "./support.ts";

setDefaultTimeout(300_000);

const LONG: SamplingParams = { temperature: 0, maxTokens: 500, ignoreEos: true };

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(() => llm.dispose());

describe("aborting", () => {
  test("a signal ends generate with what there is", async () => {
    const controller = new AbortController();
    const onProgress = ({ outputTokens }: { outputTokens: number }) =>
      outputTokens >= 6 && controller.abort();
    const outputs = await llm.generate([PROMPT, "The"], LONG, { signal: controller.signal, onProgress });
    for (const { finished, outputs: completions } of outputs) {
      expect(finished).toBe(true);
      expect(completions[0]!.finishReason).toBe("abort");
      expect(completions[0]!.tokenIds.length).toBeWithin(1, 10);
    }
    await expectUsable(llm);
  });

  test("a signal that has fired already leaves nothing to do", async () => {
    const output = only(await llm.generate(PROMPT, LONG, { signal: AbortSignal.abort() }));
    expect(output).toMatchObject({ text: "", tokenIds: [], finishReason: "abort" });
    await expectUsable(llm);
  });

  test("a signal ends all completions of a stream", async () => {
    const controller = new AbortController();
    const reasons = [];
    const params = { ...LONG, temperature: 1, seed: 1, n: 2 };
    for await (const { finishReason } of llm.stream(PROMPT, params, { signal: controller.signal })) {
      controller.abort();
      if (finishReason !== null) reasons.push(finishReason);
    }
    expect(reasons).toEqual(["abort", "abort"]);
    await expectUsable(llm);
  });

  test("leaving a stream aborts its request", async () => {
    for await (const { text } of llm.stream(PROMPT, LONG)) if (text !== "") break;
    await expectUsable(llm);
  });

  test("one request's abort leaves the others alone", async () => {
    const controller = new AbortController();
    const [aborted, other] = await Promise.all([
      llm.generate(PROMPT, LONG, { signal: controller.signal, onProgress: () => controller.abort() }),
      llm.generate("The cat sat on", GREEDY),
    ]);
    expect(only(aborted).finishReason).toBe("abort");
    expect(only(other)).toEqual(await complete(llm, GREEDY, "The cat sat on"));
  });

  test("a finished request no longer listens to its signal", async () => {
    const { signal } = new AbortController();
    await llm.generate([PROMPT, "The"], { temperature: 0, maxTokens: 2 }, { signal });
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });

  test("a callback that throws ends its requests", async () => {
    const onProgress = () => {
      throw new RangeError("from the callback");
    };
    expect(await rejection(llm.generate(PROMPT, LONG, { onProgress }))).toBeInstanceOf(RangeError);
    await expectUsable(llm);
  });

  test("a callback that throws for one prompt of several ends them all", async () => {
    let calls = 0;
    const onProgress = () => {
      if (++calls === 3) throw new RangeError("from the callback");
    };
    const prompts = [PROMPT, "The", "Once"];
    expect(await rejection(llm.generate(prompts, LONG, { onProgress }))).toBeInstanceOf(RangeError);
    expect(llm.stats()).toMatchObject({ running: 0, waiting: 0 });
    await expectUsable(llm);
  });
});

describe("a request that is refused starts nothing", () => {
  const long = { promptTokenIds: new Array<number>(1024).fill(1) };
  const cases: readonly (readonly [string, unknown, object, object])[] = [
    ["a prompt longer than the context", long, {}, { code: "context_length_exceeded", param: "prompt" }],
    [
      "megabytes of text, before it is encoded",
      "word ".repeat(800_000),
      {},
      { code: "context_length_exceeded", message: expect.stringContaining("4000000 bytes") },
    ],
    ["prompt and maxTokens longer than it", PROMPT, { maxTokens: 1021 }, { requested: 1025, limit: 1024 }],
    ["minTokens longer than it", PROMPT, { maxTokens: null, minTokens: 1021 }, { param: "minTokens" }],
    ["an empty prompt", "", {}, { code: "empty_prompt" }],
    ["no tokens", { promptTokenIds: [] }, {}, { code: "empty_prompt" }],
    ["a token id out of range", { promptTokenIds: [1, 4096] }, {}, { code: "invalid_token_id" }],
    ["a negative token id", { promptTokenIds: [-1] }, {}, { code: "invalid_token_id" }],
    ["a token id that is no integer", { promptTokenIds: [1.5] }, {}, { code: "invalid_token_id" }],
    ["NaN as a token id", { promptTokenIds: [Number.NaN] }, {}, { code: "invalid_token_id" }],
    ["text as token ids", { promptTokenIds: "12" }, {}, { param: "promptTokenIds" }],
    ["token ids without their name", 5, {}, { param: "prompt" }],
    ["null", null, {}, { param: "prompt" }],
    ["an object without a prompt", {}, {}, { param: "prompt" }],
    ["half of a surrogate pair", "a\ud800", {}, { code: "invalid_unicode" }],
    ["an empty salt", { prompt: PROMPT, cacheSalt: "" }, {}, { param: "cacheSalt" }],
    ["a salt of too many bytes", { prompt: PROMPT, cacheSalt: "é".repeat(200) }, {}, { param: "cacheSalt" }],
    ["a temperature of NaN", PROMPT, { temperature: Number.NaN }, { param: "temperature" }],
    ["an unknown parameter", PROMPT, { max_tokens: 5 }, { param: "max_tokens" }],
  ];

  test.each([...cases])("%s", async (_, prompt, params, expected) => {
    const { steps } = llm.stats();
    const prompts = [PROMPT, prompt as Prompt, "The"];
    const error = await rejection(llm.generate(prompts, [{}, params, {}]));
    expect(error).toBeInstanceOf(InvalidRequestError);
    expect(error).toMatchObject(expected);
    if ("requested" in expected) expect(error).toBeInstanceOf(ContextLengthError);
    expect(await rejection(collect(llm.stream(prompt as Prompt, params)))).toMatchObject(expected);
    expect(llm.stats()).toMatchObject({ steps, running: 0, waiting: 0 });
  });

  test("as many parameters as prompts are needed", async () => {
    expect(await rejection(llm.generate([PROMPT, "The"], [{}]))).toMatchObject({ param: "params" });
  });

  test("the engine goes on as before", () => expectUsable(llm));
});

describe("the end", () => {
  test("dispose works twice; everything after it is refused", async () => {
    const other = await createLLM();
    other.dispose();
    other.dispose();
    await other[Symbol.asyncDispose]();
    expect(await rejection(other.generate(PROMPT))).toBeInstanceOf(EngineDeadError);
    expect(await rejection(collect(other.stream(PROMPT)))).toBeInstanceOf(EngineDeadError);
    expect(await rejection(other.chat([{ role: "user", content: "Hi" }]))).toBeInstanceOf(EngineDeadError);
    expect(await rejection(other.logits([1]))).toBeInstanceOf(EngineDeadError);
  });

  test("dispose fails what is running", async () => {
    const other = await createLLM();
    const running = rejection(other.generate([PROMPT, "The"], LONG));
    const streaming = rejection(
      (async () => {
        for await (const _ of other.stream(PROMPT, LONG)) other.dispose();
      })(),
    );
    expect(await streaming).toBeInstanceOf(EngineDeadError);
    expect(await running).toBeInstanceOf(EngineDeadError);
  });

  test("await using disposes", async () => {
    let kept: LLM;
    {
      await using other = await createLLM();
      kept = other;
      expect(await complete(other, { ...GREEDY, maxTokens: 1 })).toMatchObject({ text: "," });
    }
    expect(await rejection(kept.generate(PROMPT))).toBeInstanceOf(EngineDeadError);
  });
});

test("two models at once keep apart, and one outlives the other", async () => {
  await using other = await LLM.create(fixture("qwen3").modelDir, { ...SMALL, skipTokenizerInit: true });
  const [mine, theirs] = await Promise.all([
    llm.generate(PROMPT, GREEDY),
    other.generate({ promptTokenIds: [5, 6, 7] }, { ...GREEDY, ignoreEos: true }),
  ]);
  expect(only(mine)).toEqual(await complete(llm, GREEDY));
  expect(only(theirs).tokenIds.every((id) => id < 384)).toBe(true);
  other.dispose();
  await expectUsable(llm);
});

describe("loadFormat dummy with skipTokenizerInit", () => {
  async function dummy(seed = 0) {
    using folder = temporaryFolder();
    await Bun.write(folder.file("config.json"), Bun.file(`${fixture("qwen3").modelDir}/config.json`));
    expect(readdirSync(folder.path)).toEqual(["config.json"]);
    return await LLM.create(folder.path, { ...SMALL, loadFormat: "dummy", skipTokenizerInit: true, seed });
  }
  const prompt = { promptTokenIds: [1, 2, 3] };

  test("token ids in and out, the same for the same seed", async () => {
    const runs = [];
    for (const seed of [0, 0, 1]) {
      await using model = await dummy(seed);
      expect(model.tokenizer).toBeUndefined();
      const output = only(
        await model.generate(prompt, { maxTokens: 8, seed: 1, ignoreEos: true, logprobs: 1 }),
      );
      expect(output.text).toBe("");
      expect(
        output.logprobs!.flatMap((p) => [...p.values()].map((entry) => entry.decodedToken)).join(""),
      ).toBe("");
      runs.push(output.tokenIds);
    }
    expect(runs[1]).toEqual(runs[0]!);
    expect(runs[2]).not.toEqual(runs[0]!);
  });

  test("what needs a tokenizer is refused", async () => {
    await using model = await dummy();
    expect(await rejection(model.generate("text"))).toMatchObject({ param: "prompt" });
    expect(await rejection(model.generate(prompt, { stop: "x" }))).toMatchObject({ param: "stop" });
    expect(await rejection(model.generate(prompt, { badWords: ["x"] }))).toMatchObject({ param: "badWords" });
    const chat = model.chat([{ role: "user", content: "Hi" }]);
    expect(await rejection(chat)).toMatchObject({ code: "no_chat_template" });
  });
});

describe("options that the model refuses", () => {
  const cases: readonly (readonly [object, string])[] = [
    [{ maxModelLen: 1025 }, "maxModelLen"],
    [{ maxModelLen: 512, kvCacheMemoryBytes: 2 ** 20 }, "kvCacheMemoryBytes"],
    [{ kvCacheMemoryBytes: 1000 }, "kvCacheMemoryBytes"],
    [{ device: "cpu", dtype: "float16" }, "dtype"],
    [{ chatTemplate: "./no-such-template.jinja" }, "chatTemplate"],
    [{ maxmodellen: 5 }, "maxmodellen"],
  ];
  test.each([...cases])("%o", async (options, option) => {
    const error = await rejection(createLLM(options));
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ option });
  });

  test("a KV cache smaller than the model's context shortens it", async () => {
    await using small = await createLLM({ kvCacheMemoryBytes: 3 * 2 ** 20 });
    expect(small.maxModelLen).toBe(512);
    const error = await rejection(small.generate(PROMPT, { maxTokens: 509 }));
    expect(error).toMatchObject({ code: "context_length_exceeded", limit: 512 });
  });
});
