import { afterEach, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import OpenAI from "openai";
import type { AsyncLLM } from "../../src/async/async-llm.ts";
import { type RunningServer, type ServerOptions, startServer } from "../../src/server/serve.ts";
import { eventually } from "../support.ts";
import { createAsyncLLM, ENDLESS, errorOf, GREEDY, PROMPT } from "./support.ts";

setDefaultTimeout(300_000);

/** One model that runs one sequence at a time, behind a server of its own for each test. */
let llm: AsyncLLM;
let server: RunningServer;
beforeAll(async () => {
  llm = await createAsyncLLM({ maxNumSeqs: 1 });
  return () => llm.dispose();
});
afterEach(async () => {
  await server.stop();
  await eventually(() => llm.numUnfinished === 0);
});

function serve(options: ServerOptions): void {
  server = startServer({ llm, options: { port: 0, drainSeconds: 0, logRequests: false, ...options } });
}

function complete(body: object, init: RequestInit = {}): Promise<Response> {
  return fetch(new URL("/v1/completions", server.url), {
    ...{ method: "POST", body: JSON.stringify({ prompt: PROMPT, ...GREEDY, ...body }), ...init },
    headers: { "Content-Type": "application/json", ...(init.headers as object) },
  });
}

/** A request that runs until its reader leaves. */
async function occupy(init: RequestInit = {}): Promise<() => Promise<void>> {
  const reply = await complete({ ...ENDLESS, temperature: 1, stream: true }, init);
  expect(reply.status).toBe(200);
  return () => reply.body!.cancel();
}

test("a full queue is 503, at once, for all completions of a request or none", async () => {
  serve({ maxQueueLength: 2 });
  const leave = await occupy();
  const reply = await complete({ n: 3, temperature: 1 });
  expect(llm.stats).toMatchObject({ running: 1, waiting: 0 });
  expect(reply.headers.get("retry-after")).toBe("1");
  expect(await errorOf(reply)).toMatchObject({ status: 503, code: "overloaded", type: "server_error" });
  const queued = complete({ n: 2, temperature: 1 });
  await eventually(() => llm.numUnfinished === 2);
  await leave();
  expect((await queued).status).toBe(200);
});

test("a key has its own limit, 429", async () => {
  serve({ maxConcurrentPerKey: 1, apiKeys: ["sk-one", "sk-two"] });
  const one = { headers: { Authorization: "Bearer sk-one" } };
  const leave = await occupy(one);
  const reply = await complete({}, one);
  expect(reply.headers.get("retry-after")).toBe("1");
  expect(await errorOf(reply)).toMatchObject({ status: 429, type: "rate_limit_error" });
  const client = new OpenAI({ baseURL: new URL("/v1", server.url).href, apiKey: "sk-one", maxRetries: 0 });
  const failure = await client.models
    .list()
    .then(() => client.completions.create({ model: "tiny-stories", prompt: PROMPT }))
    .catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(OpenAI.RateLimitError);
  const other = complete({}, { headers: { Authorization: "Bearer sk-two" } });
  await leave();
  expect((await other).status).toBe(200);
  expect((await complete({}, one)).status).toBe(200);
});

test("tokens are counted while generation is full, without taking its place", async () => {
  serve({ maxQueueLength: 0, maxConcurrentPerKey: 1 });
  const leave = await occupy();
  expect((await complete({})).status).toBe(503);
  const post = (path: string, body: object) =>
    fetch(new URL(path, server.url), {
      ...{ method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } },
    });
  for (const [path, body] of [
    ["/v1/completions/render", { prompt: PROMPT }],
    ["/v1/chat/completions/render", { messages: [{ role: "user", content: "Hi" }] }],
    ["/tokenize", { prompt: PROMPT }],
    ["/detokenize", { tokens: [5] }],
  ] as const)
    expect([path, (await post(path, body)).status]).toEqual([path, 200]);
  await leave();
});

test("a request that waits too long is 503, one that runs too long 504", async () => {
  serve({ queueTimeoutSeconds: 0.2 });
  const leave = await occupy();
  expect(await errorOf(complete({}))).toMatchObject({ status: 503, code: "queue_timeout" });
  await leave();
  await server.stop();
  serve({ requestTimeoutSeconds: 0.3 });
  expect(await errorOf(complete(ENDLESS))).toMatchObject({ status: 504, code: "timeout" });
  await eventually(() => llm.numUnfinished === 0);
});

test("a stream that runs too long ends with an error and no [DONE]", async () => {
  serve({ requestTimeoutSeconds: 0.5 });
  const reply = await complete({ ...ENDLESS, stream: true });
  expect(reply.status).toBe(200);
  const events = (await reply.text()).trimEnd().split("\n\n");
  expect(JSON.parse(events.at(-1)!.slice("data: ".length))).toMatchObject({
    error: { code: "timeout", type: "server_error", param: null },
  });
});

test("requests that are done make room", async () => {
  serve({ maxQueueLength: 0 });
  for (let i = 0; i < 3; i++) expect((await complete({ max_tokens: 1 })).status).toBe(200);
  expect(await errorOf(complete({ temperature: 9 }))).toMatchObject({ status: 400 });
  expect((await complete({ max_tokens: 1 })).status).toBe(200);
});
