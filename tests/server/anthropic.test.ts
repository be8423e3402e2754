import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import Anthropic from "@anthropic-ai/sdk";
import type { ServerOptions } from "../../src/server/serve.ts";
import { Scripted } from "./scripted.ts";
import { MODEL } from "./support.ts";

setDefaultTimeout(300_000);

let model: Scripted;
let client: Anthropic;
beforeAll(async () => {
  model = await Scripted.start("qwen3");
  client = clientOf(model);
});
afterAll(() => model[Symbol.asyncDispose]());

function clientOf(of: Scripted, apiKey = "none"): Anthropic {
  return new Anthropic({ baseURL: "http://test", apiKey, maxRetries: 0, fetch: of.fetch });
}

const TOOLS: Anthropic.Tool[] = [
  {
    name: "get_weather",
    description: "The weather of a city",
    input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
];
const CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>';
const THOUGHT = "<think>\nA greeting.\n</think>\n\n";
const ASK: Anthropic.MessageCreateParamsNonStreaming = {
  ...{ model: MODEL, max_tokens: 100, messages: [{ role: "user", content: "Hi" }] },
};

/** A message without what differs each time, and what the client makes of it. */
function timeless(message: Anthropic.Message): unknown {
  const { id: _, parsed_output: __, ...rest } = message as Anthropic.Message & { parsed_output?: unknown };
  return JSON.parse(JSON.stringify(rest).replace(/"call_\w+"/g, '"call"'));
}

describe("a message", () => {
  test("has text, a stop reason and usage", async () => {
    model.reply = "Hello!";
    const message = await client.messages.create({ ...ASK, system: "Be kind." });
    expect(message).toMatchObject({
      ...{ type: "message", role: "assistant", model: MODEL, stop_reason: "end_turn", stop_sequence: null },
      content: [{ type: "text", text: "Hello!" }],
    });
    expect(message.usage.output_tokens).toBeGreaterThan(0);
    expect(model.prompts.at(-1)).toStartWith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi");
  });

  test.each([
    [{ text: "Hel", finishReason: "length" }, "max_tokens", null],
    [{ text: "Hel", finishReason: "stop", stopReason: "lo" }, "stop_sequence", "lo"],
  ] as const)("says what ended it: %p", async (reply, reason, sequence) => {
    model.reply = reply;
    const message = await client.messages.create({ ...ASK, stop_sequences: ["lo"] });
    expect([message.stop_reason, message.stop_sequence]).toEqual([reason, sequence]);
  });

  test("has thoughts, text and calls as blocks, and a stream comes to the same", async () => {
    model.reply = `${THOUGHT}Let me see.\n${CALL}\n${CALL}`;
    const body = { ...ASK, tools: TOOLS };
    const whole = await client.messages.create(body);
    expect(whole.content.map(({ type }) => type)).toEqual(["thinking", "text", "tool_use", "tool_use"]);
    expect(whole.content[0]).toMatchObject({ thinking: "A greeting." });
    expect(whole.content[2]).toMatchObject({ name: "get_weather", input: { city: "Paris" } });
    expect(whole.stop_reason).toBe("tool_use");
    const stream = client.messages.stream(body);
    const pieces: string[] = [];
    stream.on("text", (text) => pieces.push(text));
    expect(timeless(await stream.finalMessage())).toEqual(timeless(whole));
    expect(pieces.length).toBeGreaterThan(1);
  });

  test("streams each block from its start to its stop", async () => {
    model.reply = `${THOUGHT}Let me see.\n${CALL}`;
    const kinds: string[] = [];
    for await (const event of await client.messages.create({ ...ASK, tools: TOOLS, stream: true })) {
      const kind = "index" in event ? `${event.type} ${event.index}` : event.type;
      if (kind !== kinds.at(-1)) kinds.push(kind);
    }
    const block = (index: number) =>
      ["start", "delta", "stop"].map((step) => `content_block_${step} ${index}`);
    expect(kinds).toEqual([
      ...["message_start", ...block(0), ...block(1), ...block(2), "message_delta", "message_stop"],
    ]);
  });

  test("goes on with the results of tools", async () => {
    model.reply = THOUGHT + CALL;
    const first = await client.messages.create({ ...ASK, tools: TOOLS });
    const called = first.content.find((block) => block.type === "tool_use")!;
    model.reply = "It is sunny.";
    await client.messages.create({
      ...ASK,
      tools: TOOLS,
      messages: [
        ...ASK.messages,
        { role: "assistant", content: first.content },
        {
          role: "user",
          content: [
            { type: "tool_result", tool_use_id: called.id, content: [{ type: "text", text: "sunny" }] },
            { type: "text", text: "And?" },
          ],
        },
      ],
    });
    expect(model.prompts.at(-1)).toContain(
      `${CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>user\nAnd?`,
    );
  });

  test("goes on with the assistant's last words", async () => {
    model.reply = "is Bob.";
    const messages = [...ASK.messages, { role: "assistant" as const, content: "My name" }];
    await client.messages.create({ ...ASK, messages });
    expect(model.prompts.at(-1)).toEndWith("My name");
  });

  test("does not think where it is told not to", async () => {
    model.reply = "Hello!";
    await client.messages.create({ ...ASK, thinking: { type: "disabled" } });
    expect(model.prompts.at(-1)).toEndWith("<think>\n\n</think>\n\n");
  });

  test("keeps to a schema, and to a tool that must be called", async () => {
    const real = new Anthropic({ baseURL: model.server.running.url.origin, apiKey: "none", maxRetries: 0 });
    const city = {
      type: "object",
      properties: { city: { enum: ["Paris", "Rome"] } },
      required: ["city"],
    } as const;
    const hot = { ...ASK, temperature: 2, thinking: { type: "disabled" } } as const;
    const { content } = await real.messages.create({
      ...hot,
      output_config: { format: { type: "json_schema", schema: { ...city, additionalProperties: false } } },
    });
    expect(["Paris", "Rome"]).toContain(JSON.parse((content[0] as Anthropic.TextBlock).text).city);
    const called = await real.messages.create({
      ...hot,
      tools: [{ name: "pick", input_schema: city as never }],
      tool_choice: { type: "tool", name: "pick" },
    });
    expect(called.stop_reason).toBe("tool_use");
    expect(called.content).toEqual([expect.objectContaining({ type: "tool_use", name: "pick" })]);
  });
});

test("counts tokens as a message does", async () => {
  model.reply = "Hello!";
  const { usage } = await client.messages.create({ ...ASK, tools: TOOLS });
  const { model: name, messages } = ASK;
  const { input_tokens } = await client.messages.countTokens({ model: name, messages, tools: TOOLS });
  expect(input_tokens).toBe(usage.input_tokens);
});

describe("errors are Anthropic's", () => {
  const refused = (body: object, of = client) =>
    of.messages.create({ ...ASK, ...body }).then(
      () => undefined,
      (error: unknown) => error,
    );

  test("for a key that is wrong; the header may be either", async () => {
    const locked = model.with({ apiKeys: ["sk-one"] } as ServerOptions);
    expect(await refused({}, clientOf(locked, "sk-two"))).toBeInstanceOf(Anthropic.AuthenticationError);
    model.reply = "Hello!";
    expect(await refused({}, clientOf(locked, "sk-one"))).toBeUndefined();
  });

  test("for a model that is not served", async () => {
    const error = await refused({ model: "other" });
    expect(error).toBeInstanceOf(Anthropic.NotFoundError);
    expect(error).toMatchObject({ error: { type: "error", error: { type: "not_found_error" } } });
  });

  test.each([
    ["messages[0].content[0]", { messages: [{ role: "user", content: [{ type: "image" }] }] }],
    ["messages[0].role", { messages: [{ role: "tool", content: "a" }] }],
    ["max_tokens", { max_tokens: -1 }],
    ["thinking.budget_tokens", { thinking: { type: "enabled", budget_tokens: -1 } }],
    ["tools[0].type", { tools: [{ type: "web_search_20260209", name: "web_search" }] }],
    ["tools[0].input_schema", { tools: [{ name: "a" }] }],
    ["tool_choice", { tools: TOOLS, tool_choice: { type: "tool", name: "x" } }],
    ["output_config.format", { output_config: { format: { type: "json_schema", schema: { not: {} } } } }],
    ["stop_sequences", { stop_sequences: 5 }],
  ])("and name %s", async (name, body) => {
    const error = await refused(body);
    expect(error).toBeInstanceOf(Anthropic.BadRequestError);
    expect((error as Error).message).toContain(name);
  });
});
