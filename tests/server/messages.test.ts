import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { errorOf, GREEDY, HI, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const CHAT = "/v1/chat/completions";
/** Shows what it is given; like DeepSeek's it would fail to join a content that is none. */
const TEMPLATE = `{%- for message in messages -%}
  [{{ message.role }}|{{ 'none' if message.content is none else message.content | length ~ ':' ~ message.content }}]
{%- endfor -%}`;

let server: TestServer;
beforeAll(async () => {
  server = await TestServer.start({}, { chatTemplate: TEMPLATE });
});
afterAll(() => server[Symbol.asyncDispose]());

/** The prompt that a conversation comes to. */
async function rendered(messages: readonly object[]): Promise<string> {
  const render = await server.post(`${CHAT}/render`, { messages });
  expect([render.status, render.ok || (await render.text())]).toEqual([200, true]);
  const { token_ids: tokens } = (await render.json()) as { token_ids: number[] };
  const { prompt } = (await (await server.post("/detokenize", { tokens })).json()) as { prompt: string };
  return prompt;
}

describe("messages as clients send them", () => {
  test("an empty text stays one, in every role", async () => {
    for (const role of ["system", "user", "assistant", "tool"])
      for (const content of ["", [], [{ type: "text", text: "" }]])
        expect([role, await rendered([{ role, content }, ...HI])]).toEqual([role, `[${role}|0:][user|2:Hi]`]);
  });

  test("an assistant's content may be null or missing, with tool calls and without", async () => {
    const call = { id: "a", type: "function", function: { name: "f", arguments: "{}" } };
    const nothing = { refusal: null, annotations: [], audio: null, function_call: null };
    for (const fields of [
      ...[{}, { content: null }, { content: null, tool_calls: null }, { content: null, tool_calls: [] }],
      ...[{ tool_calls: [call] }, { content: null, tool_calls: [call] }, { content: null, ...nothing }],
    ])
      expect(await rendered([...HI, { role: "assistant", ...fields }])).toBe("[user|2:Hi][assistant|none]");
  });

  test("of others it is missing", async () => {
    for (const role of ["system", "user", "tool"])
      expect(await errorOf(server.post(CHAT, { messages: [{ role, content: null }] }))).toMatchObject({
        ...{ status: 400, code: "invalid_value", param: "messages[0].content" },
      });
  });
});

describe("log-probabilities as clients ask for them", () => {
  test.each<readonly [object, unknown]>([
    [{ top_logprobs: 0 }, null],
    [{ logprobs: false, top_logprobs: 0 }, null],
    [{ logprobs: null, top_logprobs: null }, null],
    [{ logprobs: true, top_logprobs: 0 }, { content: [expect.objectContaining({ top_logprobs: [] })] }],
    [{ logprobs: true }, { content: [expect.objectContaining({ top_logprobs: [] })] }],
  ])("%j", async (fields, logprobs) => {
    const reply = await server.post(CHAT, { messages: HI, ...GREEDY, max_tokens: 1, ...fields });
    expect(await reply.json()).toMatchObject({ choices: [{ logprobs }] });
  });
});
