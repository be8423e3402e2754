import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import OpenAI from "openai";
import { errorOf, HI, MODEL, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

/** The embedded model under another's chat template, whose markers are tokens to it. */
let server: TestServer;
let client: OpenAI;
beforeAll(async () => {
  const chatTemplate = join(import.meta.dir, "../unit/tokenizer/fixtures/templates/qwen3.jinja");
  server = await TestServer.start({}, { chatTemplate });
  client = new OpenAI({ baseURL: server.baseURL, apiKey: "none", maxRetries: 0 });
});
afterAll(async () => {
  expect(server.llm.numUnfinished).toBe(0);
  await server[Symbol.asyncDispose]();
});

const CITIES = ["Paris", "Rome"];
const weather = (strict: boolean): OpenAI.ChatCompletionTool => ({
  type: "function",
  function: {
    name: "get_weather",
    strict,
    parameters: { type: "object", properties: { city: { enum: CITIES } }, required: ["city"] },
  },
});
const NOW: OpenAI.ChatCompletionTool = { type: "function", function: { name: "now" } };
const PAST = { chat_template_kwargs: { enable_thinking: false } };
const BODY = { model: MODEL, messages: HI, max_tokens: 200, temperature: 2, seed: 5, ...PAST } as const;
const NAMED = { type: "function", function: { name: "get_weather" } } as const;

function callsOf({ tool_calls: calls = [] }: OpenAI.ChatCompletionMessage) {
  return calls.map((call) => {
    if (call.type !== "function") throw new Error("no function is called");
    return { name: call.function.name, arguments: JSON.parse(call.function.arguments) };
  });
}

describe("a model that has to call", () => {
  test("calls some tool with arguments that are valid, and says nothing", async () => {
    const tools = [weather(false), NOW];
    const body = { ...BODY, tools, tool_choice: "required", parallel_tool_calls: false } as const;
    const { choices } = await client.chat.completions.create({ ...body, n: 4 });
    for (const { message, finish_reason } of choices) {
      expect(finish_reason).toBe("tool_calls");
      expect(message.content).toBeNull();
      const calls = callsOf(message);
      expect(calls).toHaveLength(1);
      if (calls[0]!.name === "now") expect(calls[0]!.arguments).toEqual({});
      else expect(CITIES).toContain(calls[0]!.arguments.city);
    }
  });

  test("calls the tool that is named, once, streamed or not, and ends as OpenAI's do", async () => {
    const body = { ...BODY, tools: [NOW, weather(false)], tool_choice: NAMED };
    const { choices } = await client.chat.completions.create(body);
    expect(choices[0]!.finish_reason).toBe("stop");
    const [call] = callsOf(choices[0]!.message);
    expect(call!.name).toBe("get_weather");
    let streamed = "";
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true }))
      for (const { function: piece } of chunk.choices[0]?.delta.tool_calls ?? [])
        streamed += piece?.arguments ?? "";
    expect(JSON.parse(streamed)).toEqual(call!.arguments);
  });

  test("need not think", async () => {
    const body = { ...BODY, chat_template_kwargs: {}, tools: [weather(false)], tool_choice: NAMED };
    const { choices } = await client.chat.completions.create({ ...body, n: 4, max_tokens: 60 });
    const called = choices.filter(({ finish_reason }) => finish_reason === "stop");
    for (const { message } of called) expect(callsOf(message)).toHaveLength(1);
  });
});

test("a strict tool is called with valid arguments, or not at all", async () => {
  const body = { ...BODY, tools: [weather(true), NOW], n: 4, max_tokens: 30 };
  const { choices } = await client.chat.completions.create(body);
  for (const { message, finish_reason } of choices) {
    if (finish_reason === "length") continue;
    for (const call of callsOf(message))
      if (call.name === "get_weather") expect(CITIES).toContain(call.arguments.city);
  }
});

test("a strict tool whose schema cannot be enforced is refused by the name of the keyword", async () => {
  const tool = structuredClone(weather(true));
  Object.assign(tool, { function: { name: "f", strict: true, parameters: { type: "object", if: {} } } });
  const error = await errorOf(server.post("/v1/chat/completions", { ...BODY, tools: [NOW, tool] }));
  expect(error).toMatchObject({ status: 400, code: "invalid_schema", param: "tools[1].function.parameters" });
  expect(error.message).toContain("if at the root");
});

test("the answer of a model that could think first is held to its form", async () => {
  const schema = { type: "object", properties: { city: { enum: CITIES } }, required: ["city"] };
  const format = { type: "json_schema", json_schema: { name: "city", schema } } as const;
  const { choices } = await client.chat.completions.create({ ...BODY, response_format: format });
  expect(CITIES).toContain(JSON.parse(choices[0]!.message.content!).city);
  const tools = [weather(true)];
  const either = await client.chat.completions.create({ ...BODY, tools, response_format: format, n: 4 });
  for (const { message, finish_reason } of either.choices) {
    if (finish_reason === "length") continue;
    if (message.tool_calls) expect(callsOf(message).length).toBeGreaterThan(0);
    else expect(CITIES).toContain(JSON.parse(message.content!).city);
  }
  const bad = {
    type: "json_schema",
    json_schema: { name: "x", schema: { uniqueItems: true, type: "array", items: { type: "object" } } },
  };
  const error = await errorOf(server.post("/v1/chat/completions", { ...BODY, response_format: bad }));
  expect(error).toMatchObject({ status: 400, code: "invalid_schema", param: "response_format" });
});

interface Reply {
  readonly choices: readonly [{ readonly message: { readonly content: string; readonly reasoning: string } }];
  readonly usage: { readonly completion_tokens_details: { readonly reasoning_tokens: number } };
}

describe("a budget of thoughts", () => {
  test("ends them after so many tokens, and the answer follows, which may have a form of its own", async () => {
    await using thinking = await TestServer.start({ reasoningParser: "deepseek_r1" });
    const body = { ...BODY, max_tokens: 40, thinking_token_budget: 5 };
    for (const extra of [{}, { structured_outputs: { choice: ["yes", "no"] } }]) {
      const reply = await thinking.post("/v1/chat/completions", { ...body, ...extra });
      const { choices, usage } = (await reply.json()) as Reply;
      expect(usage.completion_tokens_details.reasoning_tokens).toBe(5);
      expect(choices[0].message.reasoning.length).toBeGreaterThan(0);
      if ("structured_outputs" in extra) expect(["yes", "no"]).toContain(choices[0].message.content);
      else expect(choices[0].message.content.length).toBeGreaterThan(0);
    }
  });

  test("is refused where thoughts have no tokens around them", async () => {
    await using thinking = await TestServer.start({ reasoningParser: "mistral" });
    const error = await errorOf(thinking.post("/v1/chat/completions", { ...BODY, thinking_token_budget: 5 }));
    expect(error).toMatchObject({
      status: 400,
      code: "unsupported_parameter",
      param: "thinking_token_budget",
    });
  });
});

test("completions know no budget of thoughts", async () => {
  const body = { model: MODEL, prompt: "a", thinking_token_budget: 3 };
  const error = await errorOf(server.post("/v1/completions", body));
  expect(error).toMatchObject({ status: 501, param: "thinking_token_budget" });
});
