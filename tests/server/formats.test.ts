import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { errorOf, GREEDY, HI, MODEL, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

interface Choice {
  readonly index: number;
  readonly text: string;
  readonly finish_reason: string | null;
  readonly logprobs: {
    tokens: string[];
    token_logprobs: (number | null)[];
    top_logprobs: unknown[];
    text_offset: number[];
  } | null;
  readonly [field: string]: unknown;
}
interface Reply {
  readonly id: string;
  readonly choices: readonly Choice[];
  readonly usage: Readonly<Record<string, number>>;
}

async function complete(body: object): Promise<Reply> {
  const reply = await server.post("/v1/completions", { prompt: PROMPT, ...GREEDY, ...body });
  if (reply.status !== 200) throw new Error(await reply.text());
  return (await reply.json()) as Reply;
}

async function streamed(path: string, body: object): Promise<string> {
  const reply = await server.post(path, { ...GREEDY, stream: true, ...body });
  expect(reply.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
  return reply.text();
}

/** The documents of a stream that ended well. */
function documents(text: string): Reply[] {
  const events = text.split("\n\n");
  expect(events.splice(-2)).toEqual(["data: [DONE]", ""]);
  return events.map((event) => JSON.parse(event.slice("data: ".length)) as Reply);
}

describe("golden bytes", () => {
  const fixed = (text: string) =>
    text.replace(/"id":"(\w+)-[0-9a-f]{32}"/g, '"id":"$1-ID"').replace(/"created":\d+/g, '"created":0');

  test("of a chat", async () => {
    const head = `data: {"id":"chatcmpl-ID","object":"chat.completion.chunk","created":0,"model":"${MODEL}",`;
    const options = { include_usage: true };
    expect(
      fixed(await streamed("/v1/chat/completions", { messages: HI, max_tokens: 2, stream_options: options })),
    ).toBe(
      [
        `${head}"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}`,
        `${head}"choices":[{"index":0,"delta":{"content":"Once"},"logprobs":null,"finish_reason":null}]}`,
        `${head}"choices":[{"index":0,"delta":{"content":" upon"},"logprobs":null,"finish_reason":"length","stop_reason":null}]}`,
        `${head}"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":2,"total_tokens":14}}`,
        "data: [DONE]\n\n",
      ].join("\n\n"),
    );
  });

  test("of a completion", async () => {
    const head = `data: {"id":"cmpl-ID","object":"text_completion","created":0,"model":"${MODEL}",`;
    expect(fixed(await streamed("/v1/completions", { prompt: PROMPT, max_tokens: 2 }))).toBe(
      [
        `${head}"choices":[{"index":0,"text":",","logprobs":null,"finish_reason":null,"stop_reason":null}]}`,
        `${head}"choices":[{"index":0,"text":" there","logprobs":null,"finish_reason":"length","stop_reason":null}]}`,
        "data: [DONE]\n\n",
      ].join("\n\n"),
    );
  });
});

describe("prompts", () => {
  test("are text, token ids, or lists of either", async () => {
    const { tokens } = (await (await server.post("/tokenize", { prompt: PROMPT })).json()) as {
      tokens: number[];
    };
    const text = (await complete({})).choices[0]!.text;
    for (const prompt of [PROMPT, [PROMPT], tokens, [tokens]])
      expect((await complete({ prompt })).choices.map((choice) => choice.text)).toEqual([text]);
    expect((await complete({ prompt: [tokens, tokens] })).usage).toMatchObject({
      ...{ prompt_tokens: 8, completion_tokens: 16 },
    });
  });

  test("are cut to their last tokens when asked to", async () => {
    const cut = await complete({ truncate_prompt_tokens: 2, echo: true });
    const whole = await complete({ prompt: " a time", echo: true });
    expect(cut.choices[0]!.text).toBe(whole.choices[0]!.text);
    expect(cut.usage["prompt_tokens"]).toBe(2);
  });
});

describe("echo", () => {
  test("puts the prompt before each completion", async () => {
    const plain = await complete({ n: 2, temperature: 1, seed: 1 });
    const echoed = await complete({ n: 2, temperature: 1, seed: 1, echo: true });
    expect(echoed.choices.map(({ text }) => text)).toEqual(
      plain.choices.map(({ text }) => `${PROMPT}${text}`),
    );
    expect(echoed.usage).toEqual(plain.usage);
  });

  test("without tokens to generate scores the prompt", async () => {
    const { choices, usage } = await complete({ echo: true, max_tokens: 0, logprobs: 1 });
    const { text, finish_reason, logprobs } = choices[0]!;
    expect({ text, finish_reason }).toEqual({ text: PROMPT, finish_reason: "length" });
    expect(usage).toMatchObject({ completion_tokens: 0, total_tokens: 4 });
    expect(logprobs!.tokens).toEqual(["Once", " upon", " a", " time"]);
    expect(logprobs!.text_offset).toEqual([0, 4, 9, 11]);
    expect(logprobs!.token_logprobs[0]).toBeNull();
    expect(logprobs!.top_logprobs[0]).toBeNull();
    for (const logprob of logprobs!.token_logprobs.slice(1)) expect(logprob).toBeLessThan(0);
  });

  test("streams what it gives at once", async () => {
    const whole = (await complete({ echo: true, logprobs: 1 })).choices[0]!;
    const parts = documents(
      await streamed("/v1/completions", { prompt: PROMPT, echo: true, logprobs: 1 }),
    ).map(({ choices }) => choices[0]!);
    expect(parts.map(({ text }) => text).join("")).toBe(whole.text);
    const logprobs = parts.map((part) => part.logprobs!);
    expect(logprobs.flatMap(({ tokens }) => tokens)).toEqual(whole.logprobs!.tokens);
    expect(logprobs.flatMap(({ text_offset }) => text_offset)).toEqual(whole.logprobs!.text_offset);
  });

  test("of a chat repeats the message that is continued", async () => {
    const messages = [...HI, { role: "assistant", content: "Once upon" }];
    const body = { messages, ...GREEDY, continue_final_message: true, echo: true };
    const reply = await server.post("/v1/chat/completions", body);
    const { choices } = (await reply.json()) as { choices: { message: unknown }[] };
    expect(choices[0]!.message).toEqual({
      ...{ role: "assistant", content: expect.stringMatching(/^Once upon a/), refusal: null },
    });
  });
});

test("prompt_logprobs name tokens, ranks and texts", async () => {
  const [first, second] = (await complete({ prompt_logprobs: 1 })).choices[0]!["prompt_logprobs"] as object[];
  expect(first).toBeNull();
  expect(Object.values(second!)).toContainEqual({
    ...{ logprob: expect.any(Number), rank: 1, decoded_token: " upon" },
  });
});

test("token ids come with the reply when asked for", async () => {
  const { choices } = await complete({
    return_token_ids: true,
    logprobs: 0,
    return_tokens_as_token_ids: true,
  });
  const { token_ids, prompt_token_ids, logprobs } = choices[0]!;
  expect(prompt_token_ids).toHaveLength(4);
  expect(logprobs!.tokens).toEqual((token_ids as number[]).map((id) => `token_id:${id}`));
});

test("an interval collects tokens, the first excepted", async () => {
  const parts = documents(
    await streamed("/v1/completions", { prompt: PROMPT, stream_interval: 3, return_token_ids: true }),
  );
  expect(parts.map(({ choices }) => (choices[0]!["token_ids"] as number[]).length)).toEqual([1, 3, 3, 1]);
  expect(parts.map(({ choices }) => choices[0]!.text).join("")).toBe((await complete({})).choices[0]!.text);
});

test("a request's own id becomes part of the reply's", async () => {
  expect((await complete({ request_id: "mine" })).id).toBe("cmpl-mine");
  const [a, b] = await Promise.all([complete({ request_id: "same" }), complete({ request_id: "same" })]);
  expect(a.choices).toEqual(b.choices);
});

test("logit_bias and allowed_token_ids decide what is drawn", async () => {
  const forced = await complete({ allowed_token_ids: [418], max_tokens: 3 });
  expect(forced.choices[0]!.text).toBe("OnceOnceOnce");
  const biased = await complete({ logit_bias: { 418: 100 }, max_tokens: 3 });
  expect(biased.choices[0]!.text).toBe("OnceOnceOnce");
});

test("a 64-bit seed is exact", async () => {
  const text = (seed: string) =>
    server
      .post("/v1/completions", `{"prompt":"${PROMPT}","max_tokens":12,"temperature":2,"seed":${seed}}`)
      .then((reply) => reply.json() as Promise<Reply>)
      .then(({ choices }) => choices[0]!.text);
  const texts = await Promise.all(["9007199254740992", "9007199254740993", "9007199254740993"].map(text));
  expect(texts[1]).toBe(texts[2]!);
  expect(texts[0]).not.toBe(texts[1]!);
  const tooLarge = server.post("/v1/completions", `{"prompt":"a","seed":18446744073709551616}`);
  expect(await errorOf(tooLarge)).toMatchObject({ status: 400, param: "seed" });
});

test("odd text comes through unchanged", async () => {
  const prompt = "a\u0000b\uFEFFc\u200Dd \u202Eعربي👩‍👩‍👧 é";
  expect((await complete({ prompt, echo: true, max_tokens: 1 })).choices[0]!.text).toStartWith(prompt);
});
