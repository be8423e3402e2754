import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type { AsyncLLM } from "../../src/async/async-llm.ts";
import { createApp } from "../../src/server/serve.ts";
import { disturbed } from "./disturbed-llm.ts";
import { errorOf, GREEDY, HI, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
/** Log-probabilities that a reply may have here. */
const MOST = 1000;

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start({ maxReplyLogprobs: MOST });
});
afterAll(() => server[Symbol.asyncDispose]());

const ids = (count: number) => new Array(count).fill(5);

describe("prompts × n × tokens × log-probabilities are bounded before anything is queued", () => {
  test.each<readonly [string, string, object, string]>([
    ["prompts", COMPLETIONS, { prompt: [ids(9), ids(9)], max_tokens: 101, logprobs: 4 }, "logprobs"],
    ["completions", COMPLETIONS, { prompt: ids(9), n: 3, max_tokens: 67, logprobs: 4 }, "logprobs"],
    ["as many as are allowed", COMPLETIONS, { prompt: PROMPT, max_tokens: 47, logprobs: 20 }, ""],
    ["one token more", COMPLETIONS, { prompt: PROMPT, max_tokens: 501, logprobs: 1 }, "logprobs"],
    [
      "echoed tokens",
      COMPLETIONS,
      { prompt: ids(250), n: 2, max_tokens: 1, echo: true, logprobs: 1 },
      "logprobs",
    ],
    [
      "the same, alone",
      COMPLETIONS,
      { prompt: ids(300), max_tokens: 0, echo: true, logprobs: 3 },
      "logprobs",
    ],
    ["scored prompts", COMPLETIONS, { prompt: ids(100), n: 3, prompt_logprobs: 3 }, "prompt_logprobs"],
    [
      "both",
      COMPLETIONS,
      { prompt: ids(90), echo: true, max_tokens: 0, logprobs: 5, prompt_logprobs: 5 },
      "logprobs",
    ],
    ["a chat", CHAT, { messages: HI, n: 3, max_tokens: 67, logprobs: true, top_logprobs: 4 }, "top_logprobs"],
    [
      "a chat's prompt, which comes once",
      CHAT,
      { messages: HI, n: 9, max_tokens: 1, prompt_logprobs: 20 },
      "",
    ],
  ])("%s", async (_, path, fields, param) => {
    const { steps } = server.llm.stats;
    const reply = await server.post(path, { temperature: 1, seed: 1, ignore_eos: true, ...fields });
    if (param === "") {
      expect(reply.status).toBe(200);
      return;
    }
    const error = await errorOf(reply);
    expect(error).toMatchObject({ status: 400, code: "invalid_value", param });
    for (const part of ["prompts", "n", "max_tokens", String(MOST)]) expect(error.message).toContain(part);
    expect(server.llm.stats.steps).toBe(steps);
  });

  test("8 prompts of 1,000 ids, 128 times, with 20 each, are refused by default", async () => {
    await using plain = TestServer.over(server.llm, {});
    const body = { prompt: new Array(8).fill(ids(1000)), n: 128, echo: true, logprobs: 20, max_tokens: 1 };
    expect(await errorOf(plain.post(COMPLETIONS, body))).toMatchObject({ status: 400, param: "logprobs" });
  });

  test("without max_tokens a reply ends where it would have too many", async () => {
    const params = { temperature: 1, seed: 1, ignore_eos: true, n: 2 };
    const chat = { ...params, messages: HI, logprobs: true, top_logprobs: 4 };
    const reply = await server.post(CHAT, chat);
    expect(await reply.json()).toMatchObject({
      usage: { completion_tokens: MOST / 2 / 5 },
      choices: [{ finish_reason: "length" }, { finish_reason: "length" }],
    });
    const completion = await server.post(COMPLETIONS, { ...params, prompt: PROMPT, logprobs: 20 });
    expect(await completion.json()).toMatchObject({ usage: { completion_tokens: 2 * 11 } });
    const unscored = await server.post(COMPLETIONS, { ...params, prompt: PROMPT });
    expect(await unscored.json()).toMatchObject({ usage: { completion_tokens: 2 * 16 } });
  });
});

describe("a long reply", () => {
  const body = {
    prompt: [ids(200), ids(4)],
    n: 8,
    max_tokens: 2,
    temperature: 1,
    seed: 1,
    echo: true,
    logprobs: 20,
  };

  test("is the document that it would be in one piece, and that its stream comes to", async () => {
    await using plain = TestServer.over(server.llm, {});
    const reply = await plain.post(COMPLETIONS, body);
    expect(reply.headers.get("content-type")).toBe("application/json");
    const text = await reply.text();
    expect(text.length).toBeGreaterThan(500_000);
    interface Choice {
      index: number;
      text: string;
      logprobs: Record<string, unknown[]>;
    }
    const { choices } = JSON.parse(text) as { choices: Choice[] };
    expect(choices.map(({ index }) => index)).toEqual(Array.from({ length: 16 }, (_, i) => i));
    for (const { logprobs } of choices.slice(0, 8))
      for (const list of Object.values(logprobs)) expect(list).toHaveLength(202);
    expect(plain.lines).toHaveLength(1);
    expect(JSON.parse(plain.lines[0]!)).toMatchObject({ status: 200, completionTokens: 32 });

    const events = (await (await plain.post(COMPLETIONS, { ...body, stream: true })).text()).split("\n\n");
    const streamed = new Map<number, Choice>();
    for (const event of events.slice(0, -2)) {
      const [{ index, text, logprobs }] = JSON.parse(event.slice("data: ".length)).choices as [Choice];
      const whole = streamed.get(index);
      if (!whole) streamed.set(index, { index, text, logprobs });
      else {
        whole.text += text;
        for (const [name, list] of Object.entries(logprobs)) whole.logprobs[name]!.push(...list);
      }
    }
    for (const { index, text, logprobs } of choices)
      expect(streamed.get(index)).toEqual({ index, text, logprobs });
  });

  test("turns a prompt into text once, not for each choice", async () => {
    let calls = 0;
    const detokenize: AsyncLLM["detokenize"] = async (tokens, options) => {
      calls++;
      return server.llm.detokenize(tokens, options);
    };
    const app = createApp({ llm: disturbed(server.llm, { detokenize }), log: () => {} });
    const reply = await app.request(COMPLETIONS, {
      ...{ method: "POST", headers: { "Content-Type": "application/json" } },
      body: JSON.stringify({ prompt: ids(9), ...GREEDY, temperature: 1, n: 8, echo: true }),
    });
    expect(await reply.json()).toMatchObject({ choices: { length: 8 } });
    expect(calls).toBe(1);
  });
});
