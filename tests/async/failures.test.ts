import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { AsyncLLM as AsyncLLMClass, WORKER_SCRIPTS } from "../../src/async/async-llm.ts";
import { resolveEngineConfig } from "../../src/base/config.ts";
import { CudaError } from "../../src/cuda/errors.ts";
import {
  AsyncLLM,
  ChatTemplateError,
  ConfigError,
  ContextLengthError,
  EngineDeadError,
  InvalidRequestError,
  ModelDataError,
  ModelNotFoundError,
  RequestFailedError,
} from "../../src/index.ts";
import { temporaryFolder } from "../support.ts";
import {
  collect,
  createAsyncLLM,
  expectIdle,
  FAST_MODEL,
  FAST_OPTIONS,
  GREEDY,
  LONG,
  PROMPT,
  rejection,
  SMALL,
} from "./support.ts";

setDefaultTimeout(300_000);

const TOKENS = { promptTokenIds: [5, 6, 7] };

describe("a request that is refused starts nothing", () => {
  let asyncLLM: AsyncLLM;
  beforeAll(async () => {
    asyncLLM = await createAsyncLLM();
  });
  afterAll(() => asyncLLM.dispose());

  const cases: readonly (readonly [string, unknown, object, object])[] = [
    ["too long a text", "word ".repeat(1100), {}, { code: "context_length_exceeded", param: "prompt" }],
    ["megabytes of text", "word ".repeat(800_000), {}, { message: expect.stringContaining("bytes") }],
    [
      "a conversation of megabytes",
      { messages: [{ role: "user", content: "word ".repeat(800_000) }] },
      {},
      { code: "context_length_exceeded", message: expect.stringContaining("bytes") },
    ],
    ["prompt and output too long", PROMPT, { maxTokens: 1021 }, { requested: 1025, limit: 1024 }],
    ["an empty prompt", "", {}, { code: "empty_prompt" }],
    ["no tokens", { promptTokenIds: [] }, {}, { code: "empty_prompt" }],
    ["a token id out of range", { promptTokenIds: [4096] }, {}, { code: "invalid_token_id" }],
    ["a token id that is no integer", { promptTokenIds: [1.5] }, {}, { code: "invalid_token_id" }],
    ["no prompt at all", null, {}, { param: "prompt" }],
    ["a prompt that cannot be sent", { prompt: () => "x" }, {}, { param: "prompt" }],
    ["half of a surrogate pair", "a\ud800", {}, { code: "invalid_unicode" }],
    ["a salt of too many bytes", { ...TOKENS, cacheSalt: "é".repeat(200) }, {}, { param: "cacheSalt" }],
    ["a parameter out of range", PROMPT, { temperature: -1 }, { param: "temperature" }],
    ["an unknown parameter", PROMPT, { max_tokens: 5 }, { param: "max_tokens" }],
    [
      "too many bad words",
      PROMPT,
      { badWords: ["x".repeat(1000), "y z ".repeat(250)] },
      { param: "badWords" },
    ],
    ["no conversation", { messages: [] }, {}, { param: "messages", code: "empty_prompt" }],
    ["messages that are none", { messages: [5] }, {}, { param: "messages" }],
  ];
  test.each([...cases])("%s", async (_, prompt, params, expected) => {
    const error = await rejection(asyncLLM.submit(prompt as string, params));
    expect(error).toBeInstanceOf(InvalidRequestError);
    expect(error).toMatchObject(expected);
    if ("requested" in expected) expect(error).toBeInstanceOf(ContextLengthError);
    expect(asyncLLM.numUnfinished).toBe(0);
  });

  test("minTokens that leaves no token to draw", async () => {
    const [eos] = asyncLLM.modelConfig.eosTokenIds;
    const error = await rejection(asyncLLM.submit(PROMPT, { minTokens: 2, allowedTokenIds: [eos!] }));
    expect(error).toMatchObject({ param: "allowedTokenIds" });
  });

  test("tokens that are none have no text", async () => {
    expect(await rejection(asyncLLM.detokenize([1, -1]))).toMatchObject({ code: "invalid_token_id" });
    expect(await rejection(asyncLLM.tokenize({ promptTokenIds: [9999] }))).toMatchObject({
      code: "invalid_token_id",
    });
  });

  test("and the engine goes on", async () => {
    expect((await asyncLLM.generate(PROMPT, { ...GREEDY, maxTokens: 4 })).outputs[0]!.text).toBe(
      ", there was a",
    );
    await expectIdle(asyncLLM);
  });
});

describe("loading fails as it does for LLM", () => {
  test("a folder that does not exist", async () => {
    const error = await rejection(AsyncLLM.create("/no/such/folder", SMALL));
    expect(error).toBeInstanceOf(ModelNotFoundError);
    expect(error).toMatchObject({ name: "ModelNotFoundError", code: "model_not_found" });
    expect((error as ModelNotFoundError).path).toContain("/no/such/folder");
  });

  test("a malformed model", async () => {
    using folder = temporaryFolder();
    await Bun.write(folder.file("config.json"), "{");
    const error = await rejection(AsyncLLM.create(folder.path, SMALL));
    expect(error).toBeInstanceOf(ModelDataError);
    expect(error).toMatchObject({ file: folder.file("config.json"), exitCode: 65 });
  });

  test("options, here and in the Worker", async () => {
    for (const options of [{ maxNumSeqs: 0 }, { maxModelLen: 5000 }])
      expect(await rejection(createAsyncLLM(options))).toBeInstanceOf(ConfigError);
  });

  test("a progress listener that throws", async () => {
    const onProgress = () => {
      throw new RangeError("from the listener");
    };
    expect(await rejection(createAsyncLLM({ onProgress }))).toBeInstanceOf(RangeError);
  });

  test.each(["crash while loading", "end while loading"])("%s", async (model) => {
    const error = await rejection(failing(model));
    expect(error).toBeInstanceOf(EngineDeadError);
    expect((error as Error).message).toContain(model.startsWith("crash") ? "no such thing" : "code 7");
  });
});

test("a template that fails is the request's fault", async () => {
  const chatTemplate = "{% if messages[0].content == 'Hi' %}{{ raise_exception('not today') }}{% endif %}";
  await using asyncLLM = await createAsyncLLM({ chatTemplate });
  const error = await rejection(asyncLLM.submit({ messages: [{ role: "user", content: "Hi" }] }));
  expect(error).toBeInstanceOf(ChatTemplateError);
  expect(error).toMatchObject({ param: "messages", message: "not today" });
});

test("without a tokenizer, token ids alone", async () => {
  await using asyncLLM = await AsyncLLM.create(FAST_MODEL, FAST_OPTIONS);
  expect(await rejection(asyncLLM.submit("text"))).toMatchObject({ param: "prompt" });
  expect(await rejection(asyncLLM.submit(TOKENS, { stop: "x" }))).toMatchObject({ param: "stop" });
  expect(await rejection(asyncLLM.submit({ messages: [] }))).toMatchObject({ code: "no_chat_template" });
  expect(await rejection(asyncLLM.detokenize([5]))).toMatchObject({ param: "tokenIds" });
  expect(
    (await asyncLLM.generate(TOKENS, { maxTokens: 3, ignoreEos: true })).outputs[0]!.tokenIds,
  ).toHaveLength(3);
});

/** An AsyncLLM whose engine fails in that manner. */
function failing(model: string): Promise<AsyncLLM> {
  const engine = new URL("./failing-engine-worker.ts", import.meta.url);
  const config = resolveEngineConfig({ skipTokenizerInit: true });
  return AsyncLLMClass.start({ ...WORKER_SCRIPTS, engine }, model, config);
}

describe("the engine's death", () => {
  const cases = [
    ["crash", "the engine worker died: RangeError: out of everything"],
    ["end", "the engine worker died: it exited with code 7"],
    ["die", "the GPU is gone"],
  ] as const;
  test.each([...cases])("%s: all that is pending and all that comes later fails", async (model, reason) => {
    await using asyncLLM = await failing(model);
    const streams = await Promise.all([TOKENS, TOKENS].map((prompt) => asyncLLM.submit(prompt)));
    const errors = await Promise.all([
      ...streams.map((stream) => rejection(collect(stream))),
      rejection(asyncLLM.resetPrefixCache()),
    ]);
    errors.push(await rejection(asyncLLM.submit(TOKENS)), await rejection(asyncLLM.resetPrefixCache()));
    for (const error of errors) {
      expect(error).toBeInstanceOf(EngineDeadError);
      expect((error as Error).message).toContain(reason);
    }
    expect(asyncLLM.failure).toBeInstanceOf(EngineDeadError);
    expect(asyncLLM.numUnfinished).toBe(0);
    if (model !== "die") return;
    expect(asyncLLM.failure!.cause).toBeInstanceOf(CudaError);
    expect(asyncLLM.failure!.cause).toMatchObject({ fatal: true, status: 700, call: "cuStreamSynchronize" });
  });

  test("no progress shows", async () => {
    const asyncLLM = await failing("hang");
    const idleUntil = performance.now();
    await asyncLLM.submit(TOKENS);
    await Bun.sleep(100);
    expect(asyncLLM.secondsWithoutProgress).toBeGreaterThan(0.09);
    expect(asyncLLM.secondsWithoutProgress).toBeLessThanOrEqual((performance.now() - idleUntil) / 1000);
    expect(asyncLLM.numUnfinished).toBe(1);
    void asyncLLM.dispose();
    expect(asyncLLM.numUnfinished).toBe(0);
  });
});

test("a text that kills its worker, or does not end, fails alone", async () => {
  const text = new URL("./failing-text-worker.ts", import.meta.url);
  const scripts = { ...WORKER_SCRIPTS, text, textPool: { deadline: 1000 } };
  await using asyncLLM = await AsyncLLMClass.start(scripts, undefined, resolveEngineConfig(SMALL));
  const running = asyncLLM.generate("one", { ...LONG, maxTokens: 40 });
  const failing = ["crash", "hang"].map((prompt) => rejection(asyncLLM.submit(prompt)));
  expect((await asyncLLM.generate("two", GREEDY)).promptTokenIds).toEqual([5]);
  const errors = await Promise.all(failing);
  for (const error of errors) expect(error).toBeInstanceOf(RequestFailedError);
  expect(errors).toMatchObject([{ code: "text_failed" }, { code: "text_timeout" }]);
  expect((errors[0] as Error).message).toContain("the text is too much");
  // Alone, too: no other text's reply starts its clock.
  expect(await rejection(asyncLLM.submit("hang"))).toMatchObject({ code: "text_timeout" });
  expect((await asyncLLM.generate("three", GREEDY)).promptTokenIds).toEqual([5]);
  expect((await running).outputs[0]!.tokenIds).toHaveLength(40);
  await expectIdle(asyncLLM);
});

describe("the end", () => {
  test("what is pending fails, what comes later is refused, twice is no harm", async () => {
    const asyncLLM = await createAsyncLLM();
    const running = rejection(asyncLLM.generate(PROMPT, LONG));
    const streaming = rejection(
      (async () => {
        for await (const _ of asyncLLM.stream(PROMPT, LONG)) await asyncLLM.dispose();
      })(),
    );
    expect(await streaming).toBeInstanceOf(EngineDeadError);
    expect(await running).toBeInstanceOf(EngineDeadError);
    await asyncLLM.dispose();
    expect(await rejection(asyncLLM.submit(PROMPT))).toBeInstanceOf(EngineDeadError);
    expect(await rejection(asyncLLM.tokenize(PROMPT))).toBeInstanceOf(EngineDeadError);
    expect(asyncLLM.failure!.message).toContain("disposed");
  });

  test("disposing while a text is prepared refuses it", async () => {
    const asyncLLM = await createAsyncLLM();
    const preparing = rejection(asyncLLM.submit("word ".repeat(20_000)));
    await asyncLLM.dispose();
    expect(await preparing).toBeInstanceOf(EngineDeadError);
    expect(asyncLLM.numUnfinished).toBe(0);
  });

  test("the process ends by itself after it, and after a failed start", async () => {
    const script = `
      import { AsyncLLM } from "octavo";
      await AsyncLLM.create("/no/such/folder").catch(() => {});
      const llm = await AsyncLLM.create(${JSON.stringify(FAST_MODEL)}, ${JSON.stringify(FAST_OPTIONS)});
      await llm.submit({ promptTokenIds: [5] }, { maxTokens: 500, ignoreEos: true });
      await llm.dispose();
      console.log("disposed");`;
    const child = Bun.spawn(["bun", "-e", script], { stdout: "pipe", timeout: 100_000 });
    expect(await new Response(child.stdout).text()).toBe("disposed\n");
    expect(await child.exited).toBe(0);
  });
});
