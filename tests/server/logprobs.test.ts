import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { GREEDY, HI, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const COMPLETIONS = "/v1/completions";
const CHAT = "/v1/chat/completions";
/** The byte f0, the first of 😀. */
const F0 = 172;

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start();
});
afterAll(() => server[Symbol.asyncDispose]());

interface Logprobs {
  readonly tokens: readonly string[];
  readonly token_logprobs: readonly (number | null)[];
  readonly text_offset: readonly number[];
}

interface Choice {
  readonly text: string;
  readonly logprobs: Logprobs;
}

async function complete(body: object): Promise<Choice> {
  const reply = await server.post(COMPLETIONS, { prompt: PROMPT, ...GREEDY, logprobs: 1, ...body });
  return ((await reply.json()) as { choices: Choice[] }).choices[0]!;
}

async function tokensOf(body: object): Promise<number[]> {
  return ((await (await server.post("/tokenize", body)).json()) as { tokens: number[] }).tokens;
}

/** Each token with a text of its own is where its offset says, or, if `omitted` matches it, the text lacks it. */
function expectOffsets({ text, logprobs }: Choice, omitted?: RegExp): void {
  const characters = [...text];
  let least = 0;
  for (const [i, token] of logprobs.tokens.entries()) {
    const at = logprobs.text_offset[i]!;
    expect(at).toBeGreaterThanOrEqual(least);
    least = at;
    if (token.startsWith("bytes:") || omitted?.test(token)) continue;
    expect([i, characters.slice(at, at + [...token].length).join("")]).toEqual([i, token]);
  }
}

describe("a token that is a part of a character", () => {
  const prompt = "😀 or é? 👩‍👩‍👧𝄞x";

  test("is named by its bytes, and begins where the character does", async () => {
    const { logprobs } = await complete({ prompt: "a😀b", echo: true, max_tokens: 0 });
    expect(logprobs).toMatchObject({
      tokens: ["a", "bytes:\\xf0", "bytes:\\x9f", "bytes:\\x98", "bytes:\\x80", "b"],
      text_offset: [0, 1, 1, 1, 1, 2],
    });
  });

  test("has its own bytes in a chat", async () => {
    const body = { messages: HI, ...GREEDY, max_tokens: 2, allowed_token_ids: [F0], logprobs: true };
    const reply = await server.post(CHAT, { ...body, top_logprobs: 0 });
    const { choices } = (await reply.json()) as { choices: { logprobs: { content: object[] } }[] };
    const entry = { token: "bytes:\\xf0", bytes: [0xf0], logprob: expect.any(Number), top_logprobs: [] };
    expect(choices[0]!.logprobs.content).toEqual([entry, entry]);
    const byId = await server.post(CHAT, { ...body, return_tokens_as_token_ids: true });
    expect(await byId.json()).toMatchObject({
      choices: [{ logprobs: { content: [{ token: `token_id:${F0}`, bytes: [0xf0] }, {}] } }],
    });
  });

  test("does not shift what comes after it", async () => {
    expectOffsets(await complete({ prompt, echo: true }));
    expectOffsets(await complete({ prompt, echo: true, max_tokens: 0 }));
    expectOffsets(await complete({ prompt: [await tokensOf({ prompt })], echo: true }));
  });
});

describe("special tokens", () => {
  const SPECIAL = /^<\|/;

  test("of a text are in the echo, and so in the offsets", async () => {
    const prompt = "<|im_start|>user\nHi 😀<|im_end|>\n";
    const choice = await complete({ prompt, echo: true, max_tokens: 0 });
    expect(choice.text).toBe(prompt);
    expectOffsets(choice);
  });

  test("of token ids are in neither, unless they are asked for", async () => {
    const prompt = await tokensOf({ messages: HI });
    const without = await complete({ prompt, echo: true });
    expect(without.text).not.toContain("<|");
    expect(without.logprobs.tokens[0]).toMatch(SPECIAL);
    expectOffsets(without, SPECIAL);
    const shown = await complete({ prompt, echo: true, skip_special_tokens: false });
    expect(shown.text).toStartWith("<|im_start|>");
    expectOffsets(shown);
  });

  test("that are drawn take no room in the text that leaves them out", async () => {
    const [start] = await tokensOf({ messages: HI });
    const params = { allowed_token_ids: [start, 418], logit_bias: { [start!]: 100 }, max_tokens: 3 };
    const without = await complete(params);
    expect(without).toMatchObject({ text: "", logprobs: { text_offset: [0, 0, 0] } });
    const shown = await complete({ ...params, skip_special_tokens: false });
    expectOffsets(shown);
    expect(shown.logprobs.text_offset).toEqual([0, 12, 24]);
  });
});

test("a stop string cuts the offsets off with the text", async () => {
  const { text, logprobs } = await complete({ max_tokens: 20, stop: "there was a little" });
  expect(text).toBe(", ");
  expect(logprobs.tokens.length).toBeGreaterThan(4);
  expect(Math.max(...logprobs.text_offset)).toBe(2);
});

test("offsets of a stream are those of the whole reply", async () => {
  const body = { prompt: "a 😀 b", echo: true, n: 1, max_tokens: 12 };
  const whole = await complete(body);
  const stream = await server.post(COMPLETIONS, { ...GREEDY, logprobs: 1, ...body, stream: true });
  const parts = (await stream.text())
    .split("\n\n")
    .slice(0, -2)
    .map((event) => JSON.parse(event.slice("data: ".length)).choices[0] as Choice);
  expect(parts.map(({ text }) => text).join("")).toBe(whole.text);
  for (const name of ["tokens", "token_logprobs", "text_offset"] as const)
    expect(parts.flatMap(({ logprobs }) => [...logprobs[name]])).toEqual([...whole.logprobs[name]]);
});

describe("the likeliest tokens come first", () => {
  /** Numbers as they are written, of which a parsed object would sort its names. */
  const numbers = (text: string) => [...text.matchAll(/:(-?[\d.e-]+)/g)].map(([, value]) => Number(value));

  test("in top_logprobs, wherever the drawn one stands", async () => {
    const body = { prompt: "1 2 3 4", max_tokens: 6, logprobs: 20, temperature: 2, seed: 3 };
    const text = await (await server.post(COMPLETIONS, body)).text();
    const top = text.match(/"top_logprobs":\[(.*?)\],"text_offset"/)![1]!;
    const positions = top.split("},{").map(numbers);
    expect(positions).toHaveLength(6);
    for (const position of positions) {
      expect(position.length).toBeGreaterThan(10);
      expect(position).toEqual(position.toSorted((a, b) => b - a));
    }
  });

  test("in prompt_logprobs", async () => {
    const body = { prompt: "1 2 3 4", ...GREEDY, prompt_logprobs: 9 };
    for (const [path, fields] of [
      [COMPLETIONS, body],
      [CHAT, { ...body, prompt: undefined, messages: HI }],
    ] as const) {
      const text = await (await server.post(path, fields)).text();
      const [, ...positions] = text.split('"prompt_logprobs":')[1]!.split(/null,\{|\}\},\{/);
      expect(positions.length).toBeGreaterThan(2);
      for (const position of positions) {
        const ranks = [...position.matchAll(/"rank":(\d+)/g)].map(([, rank]) => Number(rank));
        expect(ranks.slice(0, 9)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
      }
    }
  });
});
