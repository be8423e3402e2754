import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { stepCountIs, streamText, tool } from "ai";
import type OpenAI from "openai";
import { z } from "zod";
import type { Saying } from "./saying.ts";
import { Scripted, template } from "./scripted.ts";
import { errorOf, HI, MODEL, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

const TOOLS: OpenAI.ChatCompletionTool[] = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "The weather of a city",
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
  { type: "function", function: { name: "now" } },
];
const BODY = { model: MODEL, messages: HI, tools: TOOLS, max_tokens: 200 };
const PARIS = '{"city": "Paris"}';
const CALL = `<tool_call>\n{"name": "get_weather", "arguments": ${PARIS}}\n</tool_call>`;
const NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>';

interface Message {
  readonly content: string | null;
  readonly reasoning?: string;
  readonly reasoning_content?: string;
  readonly tool_calls?: readonly { id: string; function: { name: string; arguments: string } }[];
}

/** The message that the chunks of a stream come to, as a client would put it together, and the last finish reason. */
async function streamed(client: OpenAI, body: object) {
  const stream = await client.chat.completions.create({
    ...(body as typeof BODY),
    ...{ stream: true, stream_options: { include_usage: true } },
  });
  let content: string | null = null;
  let reasoning: string | undefined;
  const calls: { id: string; type: string; function: { name: string; arguments: string } }[] = [];
  let finish: string | null = null;
  let usage: OpenAI.CompletionUsage | null | undefined;
  const argumentPieces: string[] = [];
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    const [choice] = chunk.choices;
    if (!choice) continue;
    finish = choice.finish_reason ?? finish;
    const delta = choice.delta as typeof choice.delta & { reasoning?: string };
    if (delta.content) content = (content ?? "") + delta.content;
    if (delta.reasoning !== undefined) reasoning = (reasoning ?? "") + delta.reasoning;
    for (const { index, id, type, function: called } of delta.tool_calls ?? []) {
      if (id) calls[index] = { id, type: type!, function: { name: called!.name!, arguments: "" } };
      calls[index]!.function.arguments += called!.arguments!;
      argumentPieces.push(called!.arguments!);
    }
  }
  return { content, reasoning, calls, finish, usage, argumentPieces };
}

describe("with Qwen 3's template", () => {
  let model: Scripted;
  beforeAll(async () => {
    model = await Scripted.start("qwen3");
  });
  afterAll(() => model[Symbol.asyncDispose]());

  async function ask(reply: string | Saying, body: object = {}) {
    model.reply = reply;
    const { choices, usage } = await model.client.chat.completions.create({
      ...BODY,
      ...body,
      stream: false,
    });
    const message = choices[0]!.message as unknown as Message;
    return { message, finish: choices[0]!.finish_reason, usage, choices };
  }

  test("a call", async () => {
    const { message, finish } = await ask(`Let me look.\n${CALL}`);
    expect(finish).toBe("tool_calls");
    expect<object>(message).toEqual({
      ...{ role: "assistant", content: "Let me look.", refusal: null },
      tool_calls: [
        {
          id: expect.stringMatching(/^call_\w{24}$/),
          type: "function",
          function: { name: "get_weather", arguments: PARIS },
        },
      ],
    });
  });

  test("thoughts, several calls and no text", async () => {
    const { message, finish, usage } = await ask(`<think>\nHm.\n</think>\n\n${CALL}\n${NOW}`);
    expect(finish).toBe("tool_calls");
    expect(message).toMatchObject({ content: null, reasoning: "Hm." });
    expect(message.tool_calls!.map((call) => call.function.name)).toEqual(["get_weather", "now"]);
    expect(new Set(message.tool_calls!.map(({ id }) => id)).size).toBe(2);
    const { length } = (await model.server.llm.tokenize("\nHm.\n")).tokenIds;
    expect(usage!.completion_tokens_details).toEqual({ reasoning_tokens: length });
  });

  test("the stream comes to the same message", async () => {
    for (const reply of [
      `<think>\nHm.\n</think>\n\nLook:\n${CALL}\n${NOW}`,
      ...["Hello", "<think>Hm.</think>Hello", CALL, `<tool_call>no</tool_call>`, ""],
    ]) {
      for (const tokens of [1, 3, 1000]) {
        const whole = await ask({ text: reply, tokens });
        const { content, reasoning, calls, finish, usage } = await streamed(model.client, BODY);
        expect(content ?? "").toBe(whole.message.content ?? "");
        expect([finish, usage, reasoning]).toEqual([whole.finish, whole.usage!, whole.message.reasoning]);
        const plain = (list: readonly { function: object }[]) => list.map((call) => call.function);
        expect(plain(calls)).toEqual(plain(whole.message.tool_calls ?? []));
      }
    }
  });

  test("arguments stream as they come", async () => {
    model.reply = CALL;
    const { argumentPieces } = await streamed(model.client, BODY);
    expect(argumentPieces.length).toBeGreaterThan(3);
    expect(argumentPieces.join("")).toBe(PARIS);
  });

  test("several choices have calls of their own", async () => {
    const { choices } = await ask(CALL, { n: 2, temperature: 1 });
    const ids = choices.map(({ message }) => message.tool_calls![0]!.id);
    expect([ids.length, new Set(ids).size]).toEqual([2, 2]);
  });

  test("only the first call without parallel_tool_calls", async () => {
    const { message } = await ask(`${CALL}\n${NOW}`, { parallel_tool_calls: false });
    expect(message.tool_calls!.map((call) => call.function.name)).toEqual(["get_weather"]);
    const { calls } = await streamed(model.client, { ...BODY, parallel_tool_calls: false });
    expect(calls.map((call) => call.function.arguments)).toEqual([PARIS]);
  });

  test("calls are text with tool_choice none, and without tools", async () => {
    for (const body of [{ tool_choice: "none" }, { tools: undefined }]) {
      const { message, finish } = await ask(`Hi ${CALL}`, body);
      expect([message.content, message.tool_calls, finish]).toEqual([`Hi ${CALL}`, undefined, "stop"]);
    }
  });

  test("a reply that is cut short ends for that reason", async () => {
    const half = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par';
    const cut = await ask({ text: half, finishReason: "length" });
    expect([cut.finish, cut.message.tool_calls?.[0]?.function.arguments]).toEqual([
      "length",
      '{"city": "Par',
    ]);
    const stopped = await ask({ text: half, finishReason: "stop", stopReason: "x" });
    expect(stopped.finish).toBe("stop");
    const thinking = await ask({ text: "<think>Hm", finishReason: "length" });
    expect(thinking.message).toMatchObject({ content: null, reasoning: "Hm" });
  });

  test("special tokens that mean nothing are left out, as without tools", async () => {
    const { message } = await ask(`<think>a<|im_start|>b</think>c<|im_start|>d`);
    expect(message).toMatchObject({ reasoning: "ab", content: "cd" });
    const shown = await ask(`a<|im_start|>b`, { skip_special_tokens: false });
    expect(shown.message.content).toBe("a<|im_start|>b");
  });

  test("log-probabilities and token ids are those of all tokens", async () => {
    model.reply = `<think>Hm.</think>${CALL}`;
    const { tokenIds } = await model.server.llm.tokenize(model.reply, { addSpecialTokens: false });
    const stream = await model.client.chat.completions.create({
      ...{ ...BODY, stream: true },
      ...({ return_token_ids: true } as object),
    });
    const ids: number[] = [];
    for await (const { choices } of stream)
      ids.push(...((choices[0] as { token_ids?: number[] } | undefined)?.token_ids ?? []));
    expect(ids).toEqual([...tokenIds]);
  });

  test("thoughts are left out without include_reasoning", async () => {
    const { message, usage } = await ask("<think>Hm.</think>Hello", { include_reasoning: false });
    expect([message.content, message.reasoning]).toEqual(["Hello", undefined]);
    expect(usage!.completion_tokens_details!.reasoning_tokens).toBeGreaterThan(0);
    const { reasoning } = await streamed(model.client, { ...BODY, include_reasoning: false });
    expect(reasoning).toBeUndefined();
  });

  test("thoughts come in the field that the server is told", async () => {
    for (const [reasoningField, fields] of [
      ["reasoning_content", { reasoning_content: "Hm." }],
      ["both", { reasoning: "Hm.", reasoning_content: "Hm." }],
    ] as const) {
      const other = model.with({ reasoningField });
      other.reply = "<think>Hm.</think>Hello";
      const { choices } = await other.client.chat.completions.create({ ...BODY, stream: false });
      expect(choices[0]!.message as object).toEqual({
        ...{ role: "assistant", content: "Hello", refusal: null, ...fields },
      });
    }
  });

  test("an effort of none ends the thinking in the prompt, so that all is said", async () => {
    const { message } = await ask("Hm.", { reasoning_effort: "none" });
    expect(message.content).toBe("Hm.");
    expect(model.prompts.at(-1)).toEndWith("<think>\n\n</think>\n\n");
    await ask("Hm.", { reasoning_effort: "low" });
    expect(model.prompts.at(-1)).toEndWith("<|im_start|>assistant\n");
    await ask("Hm.", { reasoning_effort: "none", chat_template_kwargs: { enable_thinking: true } });
    expect(model.prompts.at(-1)).toEndWith("<|im_start|>assistant\n");
  });

  test("a loop: tools are shown, their results come back, thoughts too", async () => {
    const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: "user", content: "Weather in Paris?" }];
    const { message } = await ask(`<think>\nI ask.\n</think>\n\n${CALL}`, { messages });
    expect(model.prompts.at(-1)).toContain('"name": "get_weather", "description": "The weather of a city"');
    const call = message.tool_calls![0]!;
    messages.push(message as unknown as OpenAI.ChatCompletionMessageParam);
    messages.push({ role: "tool", tool_call_id: call.id, content: [{ type: "text", text: "Sunny" }] });
    const answer = await ask("It is sunny.", { messages });
    expect(model.prompts.at(-1)).toContain(
      `<|im_start|>assistant\n<think>\nI ask.\n</think>\n\n${CALL}<|im_end|>\n` +
        "<|im_start|>user\n<tool_response>\nSunny\n</tool_response><|im_end|>\n",
    );
    expect([answer.message.content, answer.finish]).toEqual(["It is sunny.", "stop"]);
  });

  test("the client's own tool runner gets to the answer", async () => {
    const replies = [CALL, "It is sunny."];
    let asked = "";
    model.reply = () => replies.shift() ?? "";
    const runner = model.client.chat.completions.runTools({
      ...{ model: MODEL, messages: [{ role: "user", content: "Weather?" }], stream: true },
      tools: [
        {
          type: "function",
          function: {
            ...{ name: "get_weather", description: "d", parameters: { type: "object", properties: {} } },
            parse: JSON.parse,
            function: ({ city }: { city: string }) => {
              asked = city;
              return "Sunny";
            },
          },
        },
      ],
    });
    const content = await runner.finalContent();
    expect([content, asked]).toEqual(["It is sunny.", "Paris"]);
  });

  test("the AI SDK's tool loop gets to the answer, with thoughts", async () => {
    for (const reasoningField of ["reasoning", "reasoning_content"] as const) {
      const other = model.with({ reasoningField });
      const replies = [`<think>\nI ask.\n</think>\n\n${CALL}\n${NOW}`, "It is sunny."];
      other.reply = () => replies.shift() ?? "";
      const { chatModel } = createOpenAICompatible({
        name: "octavo",
        baseURL: "http://test/v1",
        fetch: other.fetch,
      });
      const executed: unknown[] = [];
      const execute = async (input: unknown) => {
        executed.push(input);
        return "Sunny";
      };
      const result = streamText({
        ...{ model: chatModel(MODEL), messages: HI, maxRetries: 0, stopWhen: stepCountIs(3) },
        tools: {
          get_weather: tool({ inputSchema: z.object({ city: z.string() }), execute }),
          now: tool({ inputSchema: z.object({}), execute }),
        },
      });
      const steps = await result.steps;
      expect(steps.map((step) => [step.reasoningText, step.text, step.finishReason])).toEqual([
        ["I ask.", "", "tool-calls"],
        [undefined, "It is sunny.", "stop"],
      ]);
      expect(executed).toEqual([{ city: "Paris" }, {}]);
      expect(other.prompts.at(-1)).toContain("<tool_response>\nSunny\n</tool_response>");
    }
  });

  test.each<readonly [object, string, (string | number)?, number?]>([
    [{ tools: [] }, "tools"],
    [{ tools: [5] }, "tools[0]"],
    [{ tools: [{}] }, "tools[0].type"],
    [{ tools: [{ type: "custom", custom: {} }] }, "tools[0].type"],
    [{ tools: [{ type: "function" }] }, "tools[0].function"],
    [{ tools: [TOOLS[0], { type: "function", function: {} }] }, "tools[1].function.name"],
    [{ tools: [{ type: "function", function: { name: "a b" } }] }, "tools[0].function.name"],
    [{ tools: [{ type: "function", function: { name: "x".repeat(129) } }] }, "tools[0].function.name"],
    [{ tools: [TOOLS[0], TOOLS[0]] }, "tools[1].function.name"],
    [
      { tools: [{ type: "function", function: { name: "a", parameters: [] } }] },
      "tools[0].function.parameters",
    ],
    [
      { tools: [{ type: "function", function: { name: "a", parameters: { type: "string" } } }] },
      "tools[0].function.parameters.type",
    ],
    [{ tools: [{ type: "function", function: { name: "a", strict: "no" } }] }, "tools[0].function.strict"],
    [
      { tools: [{ type: "function", function: { name: "a", description: 5 } }] },
      "tools[0].function.description",
    ],
    [{ tool_choice: "sometimes" }, "tool_choice"],
    [{ tool_choice: { type: "function" } }, "tool_choice"],
    [{ tool_choice: { type: "function", function: { name: "other" } } }, "tool_choice.function.name"],
    [{ tools: undefined, tool_choice: "auto" }, "tool_choice"],
    [{ thinking_token_budget: -1 }, "thinking_token_budget"],
    [{ thinking_token_budget: 1.5 }, "thinking_token_budget"],
    [{ include_reasoning: false, logprobs: true }, "include_reasoning"],
    [{ reasoning_effort: "much" }, "reasoning_effort"],
    [{ messages: [...HI, { role: "assistant", tool_calls: {} }] }, "messages[1].tool_calls"],
    [{ messages: [...HI, { role: "assistant", tool_calls: [{}] }] }, "messages[1].tool_calls[0].function"],
    [
      { messages: [...HI, { role: "assistant", tool_calls: [{ function: { name: "a", arguments: "{" } }] }] },
      "messages[1].tool_calls[0].function.arguments",
    ],
  ])("%j is refused", async (fields, param, code = "invalid_value", status = 400) => {
    const error = await errorOf(model.server.post("/v1/chat/completions", { ...BODY, ...fields }));
    expect(error).toMatchObject({ status, code, param });
  });

  test("tools need not be shown to a model that may call none", async () => {
    await ask("Hi", { tool_choice: "none" });
    expect(model.prompts.at(-1)).toContain("get_weather");
    const other = model.with({ excludeToolsWhenToolChoiceNone: true });
    for (const [tool_choice, shown] of [
      ["none", false],
      ["auto", true],
    ] as const) {
      await other.client.chat.completions.create({ ...BODY, tool_choice, stream: false });
      expect(other.prompts.at(-1)!.includes("get_weather")).toBe(shown);
    }
  });
});

describe("the engine's own text", () => {
  let server: TestServer;
  beforeAll(async () => {
    server = await TestServer.start({}, { chatTemplate: template("qwen3") });
  });
  afterAll(() => server[Symbol.asyncDispose]());

  async function forced(text: string, fields: object) {
    const { tokenIds } = await server.llm.tokenize(text, { addSpecialTokens: false });
    const body = { messages: HI, max_tokens: 3, temperature: 0, allowed_token_ids: [...tokenIds], ...fields };
    const reply = await server.post("/v1/chat/completions", { ...body, return_token_ids: true });
    const { choices, usage } = (await reply.json()) as {
      choices: { message: Message; token_ids: number[] }[];
      usage: { completion_tokens_details: { reasoning_tokens: number } };
    };
    return { ...choices[0]!, reasoningTokens: usage.completion_tokens_details.reasoning_tokens };
  }

  test("has the markers, though they are special tokens", async () => {
    const { message, token_ids } = await forced("<think>", {});
    expect(token_ids).toHaveLength(3);
    expect(message).toMatchObject({ content: "", refusal: null });
  });

  test("is a thought where the prompt has begun one", async () => {
    const messages = [...HI, { role: "assistant", content: "<think>\nso" }];
    const continued = { messages, continue_final_message: true };
    const { message, reasoningTokens } = await forced("a", continued);
    expect(message).toMatchObject({ content: null, reasoning: "aaa" });
    expect(reasoningTokens).toBe(3);
  });
});

describe("with other models' templates", () => {
  test.each([
    [
      "mistral_v3_tekken",
      '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}}]',
      (id: string) => `"id": "${id}"}]`,
      "[TOOL_RESULTS]",
    ],
    ["llama3_1", '{"name": "get_weather", "parameters": {"city": "Paris"}}', () => PARIS, "ipython"],
    [
      "qwen3_8",
      "</think>\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
      () => "<parameter=city>\nParis\n</parameter>",
      "<tool_response>",
    ],
  ])("%s: a call and its result", async (name, reply, printed, result) => {
    await using model = await Scripted.start(name);
    model.reply = reply;
    const { choices } = await model.client.chat.completions.create({ ...BODY, stream: false });
    const { message } = choices[0]!;
    const call = message.tool_calls![0] as OpenAI.ChatCompletionMessageFunctionToolCall;
    expect(JSON.parse(call.function.arguments)).toEqual({ city: "Paris" });
    model.reply = "Sunny.";
    const messages = [...HI, message, { role: "tool" as const, tool_call_id: call.id, content: "Sunny" }];
    await model.client.chat.completions.create({ ...BODY, messages, stream: false });
    expect(model.prompts.at(-1)).toContain(printed(call.id));
    expect(model.prompts.at(-1)).toContain(result);
  });

  test("a template without tools is no use for calls", async () => {
    await using model = await Scripted.start("chatml");
    const body = { model: MODEL, messages: HI, tools: TOOLS, stream: false } as const;
    const refusal = { status: 400, code: "unsupported_parameter", param: "tools" };
    expect(await model.client.chat.completions.create(body).catch((error: unknown) => error)).toMatchObject(
      refusal,
    );
    const named = model.with({ toolCallParser: "hermes" });
    expect(await named.client.chat.completions.create(body).catch((error: unknown) => error)).toMatchObject(
      refusal,
    );
    model.reply = CALL;
    const { choices } = await model.client.chat.completions.create({ ...body, tool_choice: "none" });
    expect(choices[0]!.message).toMatchObject({ role: "assistant", refusal: null });
    const effort = { model: MODEL, messages: HI, reasoning_effort: "low", stream: false } as const;
    expect(await model.client.chat.completions.create(effort).catch((error: unknown) => error)).toMatchObject(
      {
        ...{ status: 400, param: "reasoning_effort" },
      },
    );
  });
});
