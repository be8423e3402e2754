import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";
import { eventually } from "../support.ts";
import { AbortedRequests } from "./aborted-requests.ts";
import { HI, MODEL, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
let model: ReturnType<ReturnType<typeof createOpenAICompatible>["chatModel"]>;
let completionModel: ReturnType<ReturnType<typeof createOpenAICompatible>["completionModel"]>;

beforeAll(async () => {
  server = await TestServer.start({ apiKeys: ["sk-one"] });
  const provider = createOpenAICompatible({
    ...{ name: "octavo", baseURL: server.baseURL, apiKey: "sk-one", includeUsage: true },
  });
  model = provider.chatModel(MODEL);
  completionModel = provider.completionModel(MODEL);
});
afterAll(() => server[Symbol.asyncDispose]());

const short = { messages: HI, temperature: 0, maxOutputTokens: 8, maxRetries: 0 };

test("generateText", async () => {
  const { text, finishReason, usage } = await generateText({ model, ...short });
  expect(text).toStartWith("Once upon a time");
  expect(finishReason).toBe("length");
  expect(usage).toMatchObject({ inputTokens: 12, outputTokens: 8, totalTokens: 20 });
});

test("streamText gives the same", async () => {
  const { text: whole } = await generateText({ model, ...short });
  const result = streamText({ model, ...short });
  const parts = await Array.fromAsync(result.textStream);
  expect(parts.join("")).toBe(whole);
  expect(await result.finishReason).toBe("length");
  expect(await result.usage).toMatchObject({ inputTokens: 12, outputTokens: 8 });
});

test("a completion model", async () => {
  const { text } = await generateText({
    ...{ model: completionModel, prompt: "Once upon a time", temperature: 0, maxOutputTokens: 4 },
  });
  expect(text.length).toBeGreaterThan(4);
});

test("an aborted stream ends its request", async () => {
  using aborted = new AbortedRequests();
  const controller = new AbortController();
  const { fullStream } = streamText({
    ...{ model, messages: HI, maxRetries: 0, abortSignal: controller.signal },
    providerOptions: { octavo: { ignore_eos: true } },
  });
  for await (const part of fullStream) if (part.type === "text-delta") controller.abort();
  await eventually(() => server.llm.numUnfinished === 0);
  expect(aborted.ids.map(({ length }) => length)).toEqual([1]);
});

test("its errors carry status and message", async () => {
  const wrong = createOpenAICompatible({ name: "octavo", baseURL: server.baseURL, apiKey: "sk-two" });
  const error = await generateText({ model: wrong.chatModel(MODEL), ...short }).catch((cause) => cause);
  expect(APICallError.isInstance(error)).toBe(true);
  expect(error).toMatchObject({ statusCode: 401, message: "a valid API key is needed" });
});
