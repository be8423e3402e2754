import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany } from "ai";
import OpenAI from "openai";
import { errorOf, MODEL, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const TEXTS = ["A dog runs.", "The sky is blue."];

let server: TestServer;
let client: OpenAI;
beforeAll(async () => {
  server = await TestServer.start();
  client = new OpenAI({ baseURL: server.baseURL, apiKey: "none", maxRetries: 0 });
});
afterAll(() => server[Symbol.asyncDispose]());

test("lists of numbers and base64 are the same, and those of the library", async () => {
  const ask = { model: MODEL, input: TEXTS };
  const floats = await client.embeddings.create({ ...ask, encoding_format: "float" });
  const base64 = await client.embeddings.create(ask);
  const direct = await server.llm.embed(TEXTS);
  expect(floats.usage).toEqual({
    prompt_tokens: expect.any(Number),
    total_tokens: floats.usage.prompt_tokens,
  });
  expect(floats.usage.prompt_tokens).toBeGreaterThan(4);
  for (const [i, { index, embedding }] of floats.data.entries()) {
    expect(index).toBe(i);
    expect(Float32Array.from(embedding)).toEqual(new Float32Array(direct[i]!));
    expect(Float32Array.from(base64.data[i]!.embedding)).toEqual(new Float32Array(direct[i]!));
  }
});

test("the AI SDK takes them", async () => {
  const provider = createOpenAICompatible({ name: "octavo", baseURL: server.baseURL });
  const { embeddings } = await embedMany({ model: provider.embeddingModel(MODEL), values: TEXTS });
  const direct = await server.llm.embed(TEXTS);
  expect(embeddings).toEqual(direct.map((vector) => Array.from(vector)));
});

test("dimensions, pooling and lengths are as asked for", async () => {
  const reply = await server.post("/v1/embeddings", {
    ...{ input: TEXTS[0], dimensions: 4, pooling: "mean", normalize: false },
  });
  const { data } = (await reply.json()) as { data: { embedding: number[] }[] };
  const [expected] = await server.llm.embed(TEXTS[0]!, { dimensions: 4, pooling: "mean", normalize: false });
  expect(data[0]!.embedding).toEqual(Array.from(expected!));
});

test.each([
  ["input", {}],
  ["input", { input: [] }],
  ["input", { input: [[-1]] }],
  ["dimensions", { input: "a", dimensions: 0 }],
  ["encoding_format", { input: "a", encoding_format: "int8" }],
])("%s is refused by its name: %p", async (param, body) => {
  expect(await errorOf(server.post("/v1/embeddings", body))).toMatchObject({ status: 400, param });
});
