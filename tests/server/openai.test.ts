import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import OpenAI from "openai";
import { LLM } from "../../src/llm/llm.ts";
import { eventually } from "../support.ts";
import { ENDLESS, GREEDY, HI, MODEL, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
let client: OpenAI;
/** The same requests, without a server. */
let llm: LLM;

beforeAll(async () => {
  server = await TestServer.start({ enablePromptTokensDetails: true });
  client = new OpenAI({ baseURL: server.baseURL, apiKey: "none", maxRetries: 0 });
  llm = await LLM.create(undefined, { device: "cpu", kvCacheMemoryBytes: 64 * 2 ** 20 });
});
afterAll(async () => {
  llm.dispose();
  await server[Symbol.asyncDispose]();
});

/** What the client throws. */
async function thrown(request: Promise<unknown>): Promise<InstanceType<typeof OpenAI.APIError>> {
  const error = await request.then(
    () => undefined,
    (cause: unknown) => cause,
  );
  if (!(error instanceof OpenAI.APIError)) throw new Error(`not the client's error: ${error}`);
  return error;
}

describe("completions", () => {
  test("gives what the model gives without a server", async () => {
    const [expected] = await llm.generate(PROMPT, { temperature: 0, maxTokens: 8 });
    const reply = await client.completions.create({ model: MODEL, prompt: PROMPT, ...GREEDY });
    expect(reply).toMatchObject({ object: "text_completion", model: MODEL });
    expect(reply.id).toStartWith("cmpl-");
    expect(reply.choices).toHaveLength(1);
    expect(reply.choices[0]).toMatchObject({
      ...{ index: 0, text: expected!.outputs[0]!.text, finish_reason: "length", logprobs: null },
    });
    expect(reply.usage).toMatchObject({ prompt_tokens: 4, completion_tokens: 8, total_tokens: 12 });
  });

  test("streams the same text", async () => {
    const whole = await client.completions.create({ model: MODEL, prompt: PROMPT, ...GREEDY });
    const stream = await client.completions.create({
      ...{ model: MODEL, prompt: PROMPT, stream: true, ...GREEDY },
      stream_options: { include_usage: true },
    });
    const chunks = await Array.fromAsync(stream);
    expect(chunks.length).toBeGreaterThan(1);
    expect(chunks.map((chunk) => chunk.choices[0]?.text ?? "").join("")).toBe(whole.choices[0]!.text);
    expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 8 } });
    expect(chunks.filter((chunk) => chunk.usage)).toHaveLength(1);
  });

  test("continues several prompts n times, choices in order", async () => {
    const request = { model: MODEL, prompt: ["The dog", "The cat"], n: 2, seed: 7, max_tokens: 4 };
    const { choices } = await client.completions.create(request);
    expect(choices.map((choice) => choice.index)).toEqual([0, 1, 2, 3]);
    const alone = await client.completions.create({ ...request, prompt: "The cat" });
    expect(choices.slice(2).map((choice) => choice.text)).toEqual(alone.choices.map((choice) => choice.text));

    const streamed = ["", "", "", ""];
    for await (const chunk of await client.completions.create({ ...request, stream: true }))
      for (const { index, text } of chunk.choices) streamed[index] += text;
    expect(streamed).toEqual(choices.map((choice) => choice.text));
  });

  test("a seed repeats itself, and stop strings end the text", async () => {
    const request = { model: MODEL, prompt: PROMPT, max_tokens: 40, seed: 3, temperature: 1.5, stop: "." };
    const [a, b] = await Promise.all([
      client.completions.create(request),
      client.completions.create(request),
    ]);
    expect(a.choices[0]!.text).toBe(b.choices[0]!.text);
    expect(a.choices[0]).toMatchObject({ finish_reason: "stop", stop_reason: "." });
    expect(a.choices[0]!.text).not.toContain(".");
  });

  test("gives log-probabilities", async () => {
    const reply = await client.completions.create({ model: MODEL, prompt: PROMPT, logprobs: 2, ...GREEDY });
    const { tokens, token_logprobs, top_logprobs, text_offset } = reply.choices[0]!.logprobs!;
    expect(tokens!.join("")).toBe(reply.choices[0]!.text);
    expect(text_offset![1]).toBe(tokens![0]!.length);
    for (const [i, token] of tokens!.entries()) {
      expect(Object.keys(top_logprobs![i]!)).toHaveLength(2);
      expect(top_logprobs![i]![token]).toBe(token_logprobs![i]!);
      expect(Math.max(...Object.values(top_logprobs![i]!))).toBe(token_logprobs![i]!);
    }
  });
});

describe("chat", () => {
  test("gives what the model gives without a server", async () => {
    const [expected] = await llm.chat(HI, { temperature: 0, maxTokens: 8 });
    const reply = await client.chat.completions.create({ model: MODEL, messages: HI, ...GREEDY });
    expect(reply.object).toBe("chat.completion");
    expect(reply.id).toStartWith("chatcmpl-");
    expect(reply.choices[0]).toMatchObject({
      message: { role: "assistant", content: expected!.outputs[0]!.text },
      finish_reason: "length",
    });
  });

  test("streams the same text", async () => {
    const request = { model: MODEL, messages: HI, ...GREEDY };
    const whole = await client.chat.completions.create(request);
    const runner = client.chat.completions.stream({ ...request, stream_options: { include_usage: true } });
    const final = await runner.finalChatCompletion();
    expect(final.choices[0]!.message.content).toBe(whole.choices[0]!.message.content);
    expect(final.choices[0]!.finish_reason).toBe("length");
    expect(final.usage).toMatchObject({ completion_tokens: 8, prompt_tokens: 12 });
  });

  test("continuous usage is in every chunk", async () => {
    const options = { include_usage: true, continuous_usage_stats: true };
    const stream = await client.chat.completions.create({
      ...{ model: MODEL, messages: HI, stream: true, ...GREEDY, stream_options: options },
    });
    const counts = (await Array.fromAsync(stream)).map((chunk) => chunk.usage?.completion_tokens);
    expect(counts).not.toContain(undefined);
    expect(counts.toSorted((a, b) => a! - b!)).toEqual(counts);
    expect(counts.at(-1)).toBe(8);
  });

  test("gives log-probabilities", async () => {
    const reply = await client.chat.completions.create({
      ...{ model: MODEL, messages: HI, logprobs: true, top_logprobs: 3, ...GREEDY },
    });
    const { content } = reply.choices[0]!.logprobs!;
    expect(content!.map(({ token }) => token).join("")).toBe(reply.choices[0]!.message.content!);
    for (const { token, logprob, bytes, top_logprobs } of content!) {
      expect(Buffer.from(bytes!).toString()).toBe(token);
      expect(top_logprobs).toHaveLength(3);
      expect(top_logprobs[0]).toMatchObject({ token, logprob });
      expect(top_logprobs[1]!.logprob).toBeLessThanOrEqual(logprob);
    }
  });

  test("n replies are told apart in a stream", async () => {
    const request = { model: MODEL, messages: HI, n: 3, seed: 5, max_tokens: 5 };
    const whole = await client.chat.completions.create(request);
    const texts = ["", "", ""];
    const roles: (string | undefined)[] = [];
    for await (const { choices } of await client.chat.completions.create({ ...request, stream: true })) {
      for (const { index, delta } of choices) {
        texts[index] = `${texts[index]}${delta.content ?? ""}`;
        if (delta.role) roles[index] = delta.role;
      }
    }
    expect(texts).toEqual(whole.choices.map(({ message }) => message.content!));
    expect(new Set(texts).size).toBeGreaterThan(1);
    expect(roles).toEqual(["assistant", "assistant", "assistant"]);
  });

  test("a repeated prompt is found in the cache", async () => {
    const messages = [{ role: "user" as const, content: "Tell me a story. ".repeat(10) }];
    const ask = () => client.chat.completions.create({ model: MODEL, messages, ...GREEDY });
    await ask();
    const { usage } = await ask();
    expect(usage!.prompt_tokens_details!.cached_tokens).toBeGreaterThanOrEqual(16);
  });
});

test("lists the model and finds it by name", async () => {
  const models = await Array.fromAsync(client.models.list());
  expect(models).toMatchObject([{ id: MODEL, object: "model", max_model_len: 1024, root: MODEL }]);
  expect(await client.models.retrieve(MODEL)).toEqual(models[0]!);
});

describe("leaving", () => {
  test("a streaming request ends with its reader", async () => {
    const stream = await client.completions.create({ model: MODEL, stream: true, ...ENDLESS });
    for await (const _ of stream) break;
    await eventually(() => server.llm.numUnfinished === 0);
    expect(server.llm.stats.running).toBe(0);
    await eventually(() => server.lines.some((line) => line.includes("client_closed_request")));
  });

  test("a request that is waited for ends with its client", async () => {
    const controller = new AbortController();
    const reply = client.completions.create({ model: MODEL, ...ENDLESS }, { signal: controller.signal });
    const failure = reply.catch((error: unknown) => error);
    await eventually(() => server.llm.stats.running === 1);
    controller.abort();
    expect(await failure).toBeInstanceOf(OpenAI.APIUserAbortError);
    await eventually(() => server.llm.numUnfinished === 0);
  });
});

describe("errors are the client's own", () => {
  test("bad request", async () => {
    const error = await thrown(client.completions.create({ model: MODEL, prompt: PROMPT, temperature: -1 }));
    expect(error).toBeInstanceOf(OpenAI.BadRequestError);
    expect(error).toMatchObject({
      ...{ status: 400, code: "invalid_value", param: "temperature", type: "invalid_request_error" },
    });
  });

  test("unknown model", async () => {
    const error = await thrown(client.chat.completions.create({ model: "gpt-4", messages: HI }));
    expect(error).toBeInstanceOf(OpenAI.NotFoundError);
    expect(error).toMatchObject({ code: "model_not_found", param: "model" });
    expect(await thrown(client.models.retrieve("gpt-4"))).toBeInstanceOf(OpenAI.NotFoundError);
  });

  test("not implemented, and not tried again", async () => {
    const retrying = client.withOptions({ maxRetries: 2 });
    const before = await server.metric("octavo:http_requests_total", 'status="501"');
    const error = await thrown(
      retrying.chat.completions.create({
        ...{ model: MODEL, messages: HI, verbosity: "low" },
      }),
    );
    expect(error).toMatchObject({ status: 501, code: "unsupported_parameter", param: "verbosity" });
    expect(error).toBeInstanceOf(OpenAI.InternalServerError);
    expect(await server.metric("octavo:http_requests_total", 'status="501"')).toBe((before ?? 0) + 1);
  });
});
