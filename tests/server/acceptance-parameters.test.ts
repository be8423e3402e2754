import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { busyTurns, eventually } from "../support.ts";
import { canary, errorOf, expectUnharmed, GREEDY, HI, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
/** The KV cache holds fewer tokens than the context. */
const POOL_BYTES = 2 ** 21;

let server: TestServer;
let before: string;
beforeAll(async () => {
  server = await TestServer.start({}, { kvCacheMemoryBytes: POOL_BYTES });
  before = await canary(server);
});
afterEach(() => eventually(() => server.llm.numUnfinished === 0));
afterAll(async () => {
  await expectUnharmed(server, before);
  await server[Symbol.asyncDispose]();
});

type Case = readonly [what: string, fields: object, param: string, code?: string];

function refuses(path: string, base: object, cases: readonly Case[]): void {
  test.each([...cases])("%s", async (_, fields, param, code = "invalid_value") => {
    const error = await errorOf(server.post(path, { ...base, ...fields }));
    expect(error).toMatchObject({ status: 400, type: "invalid_request_error", code, param });
  });
}

/** By name; none is a token id. */
const WRONG_IDS: Readonly<Record<string, unknown>> = {
  ...{ "a negative id": -1, "the vocabulary's size": 4096, "a fraction": 1.5, "2^53": 2 ** 53 },
  ...{ "a text": "5", null: null, "a list": [5], "an object": {}, true: true },
};

describe("token ids", () => {
  const each = (fields: (id: unknown) => object, param: string, code = "invalid_value") =>
    Object.entries(WRONG_IDS).map(([name, id]): Case => [`${name} in ${param}`, fields(id), param, code]);
  refuses(COMPLETIONS, { prompt: PROMPT, ...GREEDY }, [
    ...each((id) => ({ prompt: [[5], [5, id]] }), "prompt", "invalid_token_id"),
    ...each((id) => ({ stop_token_ids: [5, id] }), "stop_token_ids"),
    ...each((id) => ({ allowed_token_ids: [5, id] }), "allowed_token_ids"),
    ["a negative id in logit_bias", { logit_bias: { "-1": 1 } }, "logit_bias"],
    ["a fraction in logit_bias", { logit_bias: { "1.5": 1 } }, "logit_bias"],
    ["2^53 in logit_bias", { logit_bias: { [2 ** 53]: 1 } }, "logit_bias"],
    ["a word in logit_bias", { logit_bias: { cat: 1 } }, "logit_bias"],
    ["__proto__ in logit_bias", JSON.parse('{"logit_bias":{"__proto__":1}}'), "logit_bias"],
    ["a list for logit_bias", { logit_bias: [1] }, "logit_bias"],
    ["a text for a bias", { logit_bias: { 5: "1" } }, "logit_bias"],
    ["a text for stop_token_ids", { stop_token_ids: "5" }, "stop_token_ids"],
  ]);
  refuses(
    "/detokenize",
    {},
    each((id) => ({ tokens: [5, id] }), "tokens", "invalid_token_id"),
  );
});

describe("prompts", () => {
  refuses(COMPLETIONS, GREEDY, [
    ["an empty text among others", { prompt: ["a", ""] }, "prompt", "empty_prompt"],
    ["an empty list among others", { prompt: [[5], []] }, "prompt", "empty_prompt"],
    ["no prompt", { prompt: null }, "prompt"],
    ["129 lists of token ids", { prompt: new Array(129).fill([5]) }, "prompt"],
    ["lists in lists in lists", { prompt: [[[5]]] }, "prompt", "invalid_token_id"],
    ["texts and numbers", { prompt: ["a", 5] }, "prompt", "invalid_token_id"],
    ["more than the KV cache holds", { prompt: new Array(400).fill(5) }, "prompt", "context_length_exceeded"],
    [
      "the same with its output",
      { prompt: PROMPT, max_tokens: 400 },
      "max_tokens",
      "context_length_exceeded",
    ],
  ]);
  refuses(CHAT, GREEDY, [
    ["an empty conversation", { messages: [] }, "messages", "empty_prompt"],
    ["an empty object as message", { messages: [{}] }, "messages[0].role"],
    ["null as message", { messages: [null] }, "messages[0]"],
    ["null as content part", { messages: [{ role: "user", content: [null] }] }, "messages[0].content[0]"],
    ["a list as role", { messages: [{ role: ["user"], content: "Hi" }] }, "messages[0].role"],
  ]);
  refuses("/tokenize", {}, [
    ["an empty text to tokenize", { prompt: "" }, "prompt", "empty_prompt"],
    ["no messages to tokenize", { messages: [] }, "messages", "empty_prompt"],
  ]);

  test("without max_tokens the reply to a conversation ends where the KV cache does", async () => {
    const reply = await server.post(CHAT, { messages: HI, temperature: 0, ignore_eos: true });
    const { usage, choices } = (await reply.json()) as {
      usage: { total_tokens: number };
      choices: { finish_reason: string }[];
    };
    expect(choices[0]!.finish_reason).toBe("length");
    expect(usage.total_tokens).toBe(server.llm.cacheConfig.numBlocks * server.llm.cacheConfig.blockSize);
  });

  test.each([
    ["NUL, byte order mark and joiners", "a\u0000b\uFEFFc\u200Dd"],
    ["a byte order mark in front", "\uFEFFOnce"],
    ["right to left", "\u202Eעברית عربي"],
    ["emoji of several code points", "👩‍👩‍👧 🏳️‍🌈"],
    ["not normalised", "e\u0301 \u212B"],
    ["private and last code points", "\uE000\u{10FFFF}"],
  ])("%s: text comes back as it came", async (_, prompt) => {
    const { tokens } = (await (await server.post("/tokenize", { prompt })).json()) as { tokens: number[] };
    expect(await (await server.post("/detokenize", { tokens })).json()).toEqual({ prompt });
    const stream = await server.post(COMPLETIONS, { prompt, echo: true, max_tokens: 1, stream: true });
    const [first] = (await stream.text()).split("\n\n");
    expect(JSON.parse(first!.slice("data: ".length)).choices[0].text).toStartWith(prompt);
  });

  test("the text of a special token in a message is that token", async () => {
    const tokens = async (content: string) => {
      const reply = await server.post("/tokenize", { messages: [{ role: "user", content }] });
      return ((await reply.json()) as { tokens: number[] }).tokens;
    };
    const special = await tokens("<|im_end|>");
    expect(special).toHaveLength((await tokens("a")).length);
  });
});

describe("sampling", () => {
  refuses(COMPLETIONS, { prompt: PROMPT, temperature: 0 }, [
    ["min_tokens above what is left", { min_tokens: 500, max_tokens: null }, "min_tokens"],
    ["min_tokens above the default", { min_tokens: 17 }, "min_tokens"],
    ["min_tokens below 0", { min_tokens: -1 }, "min_tokens"],
    ["a million stop strings", { stop: new Array(1e6).fill("a") }, "stop"],
    ["an empty stop string among others", { stop: ["a", ""] }, "stop"],
    ["a number as stop string", { stop: ["a", 5] }, "stop"],
    ["513 stop ids", { stop_token_ids: new Array(513).fill(5) }, "stop_token_ids"],
    ["a million wrong stop ids", { stop_token_ids: new Array(1e6).fill("") }, "stop_token_ids"],
    ["257 bad words", { bad_words: new Array(257).fill("a") }, "bad_words"],
    ["a million numbers as bad words", { bad_words: new Array(1e6).fill(1) }, "bad_words"],
    ["a bad word of 257 letters", { bad_words: ["a".repeat(257)] }, "bad_words"],
    ["bad words of too many tokens", { bad_words: new Array(256).fill("é".repeat(256)) }, "bad_words"],
    ["a seed of a text", { seed: "1" }, "seed"],
    ["best_of above 16", { best_of: 1e9 }, "best_of"],
    ["no top_p", { top_p: -0 }, "top_p"],
    ["logprobs of a fraction", { logprobs: 1.5 }, "logprobs"],
    ["prompt_logprobs above the limit", { prompt_logprobs: 21 }, "prompt_logprobs"],
  ]);

  test.each(["18446744073709551616", "9223372036854775808", "-9223372036854775809", "1e300", "9.5e18"])(
    "seed %s has more than 64 bits",
    async (seed) => {
      const reply = server.post(COMPLETIONS, `{"prompt":"a","seed":${seed}}`);
      expect(await errorOf(reply)).toMatchObject({ status: 400, code: "invalid_value", param: "seed" });
    },
  );

  test("the seed of another object is not the request's", async () => {
    const body = `{"metadata":{"seed":18446744073709551616},"seed":7,"prompt":"${PROMPT}","max_tokens":1}`;
    expect((await server.post(COMPLETIONS, body)).status).toBe(200);
  });
});

describe("templates are the server's", () => {
  const template = "{% for i in range(100000000) %}{% endfor %}";
  for (const path of [CHAT, `${CHAT}/render`, "/tokenize"])
    for (const fields of [{ chat_template: template }, { chat_template_kwargs: { chat_template: template } }])
      test(`${path} with ${Object.keys(fields)[0]}`, async () => {
        const error = await errorOf(server.post(path, { messages: HI, ...fields }));
        const param = Object.keys(fields)[0]!;
        expect(error).toMatchObject({ status: 400, code: "unsupported_parameter", param });
      });

  test("10,000 messages are rendered and found to be too long", async () => {
    const messages = new Array(10_000).fill({ role: "user", content: "Hi" });
    const error = await errorOf(server.post(CHAT, { messages, max_tokens: 1 }));
    expect(error).toMatchObject({ status: 400, param: "messages", code: "context_length_exceeded" });
  });
});

test.each([
  ["512 KiB of one letter", "x".repeat(512 * 1024)],
  ["a megabyte of hyphens", "-".repeat(1e6)],
  ["200,000 spaces", " ".repeat(2e5)],
  ["100,000 combining marks", `a${"\u0301".repeat(1e5)}`],
  ["a megabyte of underscores and line breaks", "_\n".repeat(5e5)],
])("%s is refused, and another stream keeps flowing", async (_, prompt) => {
  const body = JSON.stringify({ prompt });
  const stream = await server.post(COMPLETIONS, {
    ...{ prompt: PROMPT, max_tokens: 300, ignore_eos: true, temperature: 0, stream: true },
  });
  const reader = stream.body!.getReader();
  const turns = await busyTurns(async () => {
    const error = await errorOf(server.post(COMPLETIONS, body));
    expect(error).toMatchObject({ status: 400, code: "context_length_exceeded", param: "prompt" });
    expect((await reader.read()).done).toBe(false);
  });
  await reader.cancel();
  // 50 ms is what is promised; this thread also plays the client.
  expect(turns.at(-1)).toBeLessThan(100);
});
