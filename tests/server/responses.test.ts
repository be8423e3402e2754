import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import type OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { Scripted } from "./scripted.ts";
import { errorOf, MODEL } from "./support.ts";

setDefaultTimeout(300_000);

let model: Scripted;
let client: OpenAI;
beforeAll(async () => {
  model = await Scripted.start("qwen3");
  client = model.client;
});
afterAll(() => model[Symbol.asyncDispose]());

const PARAMETERS = {
  ...{ type: "object", properties: { city: { type: "string" } } },
  ...{ required: ["city"], additionalProperties: false },
};
const TOOLS: OpenAI.Responses.Tool[] = [
  { type: "function", name: "get_weather", parameters: PARAMETERS, strict: false },
];
const PARIS = '{"city": "Paris"}';
const CALL = `<tool_call>\n{"name": "get_weather", "arguments": ${PARIS}}\n</tool_call>`;
const THOUGHT = "<think>\nA greeting.\n</think>\n\n";
const ASK = { model: MODEL, input: "Hi" } as const;

function post(body: object): Promise<Response> {
  const init = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  return model.fetch("http://test/v1/responses", init);
}

/** A response without what differs each time, and what the client makes of it. */
function timeless({ id: _, created_at: __, completed_at: ___, ...rest }: OpenAI.Responses.Response) {
  const text = JSON.stringify(rest)
    .replace(/"(rs|msg|fc)_[0-9a-f]+/g, '"$1')
    .replace(/"call_\w+"/g, '"call"');
  const strip = (key: string, value: unknown) => (/^(output_)?parsed/.test(key) ? undefined : value);
  return JSON.parse(text, strip) as OpenAI.Responses.Response;
}

describe("a response", () => {
  test("has text, usage and what it was asked with", async () => {
    model.reply = "Hello!";
    const response = await client.responses.create({
      ...{ ...ASK, instructions: "Be kind.", temperature: 0.5, metadata: { a: "b" } },
    });
    expect(response.output_text).toBe("Hello!");
    expect(response).toMatchObject({
      ...{ object: "response", status: "completed", error: null, incomplete_details: null, model: MODEL },
      ...{ instructions: "Be kind.", temperature: 0.5, store: true, metadata: { a: "b" } },
      output: [{ type: "message", role: "assistant", status: "completed" }],
    });
    expect(response.usage!.total_tokens).toBe(response.usage!.input_tokens + response.usage!.output_tokens);
    expect(model.prompts.at(-1)).toStartWith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi");
  });

  test("that a limit cuts short is incomplete", async () => {
    model.reply = { text: "Hel", finishReason: "length" };
    const response = await client.responses.create({ ...ASK, max_output_tokens: 1 });
    expect(response).toMatchObject({
      ...{ status: "incomplete", incomplete_details: { reason: "max_output_tokens" } },
      output: [{ status: "incomplete" }],
    });
  });

  test("has thoughts, text and calls as items, and a stream comes to the same", async () => {
    model.reply = `${THOUGHT}Let me see.\n${CALL}\n${CALL}`;
    const body = { ...ASK, tools: TOOLS };
    const whole = await client.responses.create(body);
    expect(timeless(whole).output.map(({ type }) => type)).toEqual([
      ...["reasoning", "message", "function_call", "function_call"],
    ] as never);
    expect(whole.output[0]).toMatchObject({ content: [{ type: "reasoning_text", text: "A greeting." }] });
    expect(whole.output[2]).toMatchObject({ name: "get_weather", arguments: PARIS });
    expect(whole.usage!.output_tokens_details.reasoning_tokens).toBeGreaterThan(0);

    const stream = client.responses.stream(body);
    const events: OpenAI.Responses.ResponseStreamEvent[] = [];
    for await (const event of stream) events.push(event);
    expect(events.map(({ sequence_number }) => sequence_number)).toEqual(events.map((_, i) => i));
    const kinds = events.map(({ type }) => type).filter((type, i, all) => type !== all[i - 1]);
    const item = (kind: string) => [
      ...["response.output_item.added", "response.content_part.added"],
      ...[`response.${kind}.delta`, `response.${kind}.done`],
      ...["response.content_part.done", "response.output_item.done"],
    ];
    const call = [
      ...["response.output_item.added", "response.function_call_arguments.delta"],
      ...["response.function_call_arguments.done", "response.output_item.done"],
    ];
    expect(kinds as string[]).toEqual([
      ...["response.created", "response.in_progress", ...item("reasoning_text"), ...item("output_text")],
      ...[...call, ...call, "response.completed"],
    ]);
    const final = timeless(await stream.finalResponse());
    expect(final).toEqual(timeless(whole));
  });

  test("keeps to a schema", async () => {
    const city = z.object({ city: z.enum(["Paris", "Rome"]) });
    const reply = await model.real.responses.parse({
      ...{ ...ASK, temperature: 2, max_output_tokens: 60, reasoning: { effort: "none" } },
      text: { format: zodTextFormat(city, "city") },
    });
    expect(city.safeParse(reply.output_parsed).success).toBe(true);
  });
});

describe("a conversation", () => {
  test("goes on with the results of calls, given back as items", async () => {
    model.reply = THOUGHT + CALL;
    const input: OpenAI.Responses.ResponseInput = [{ role: "user", content: "Weather?" }];
    const first = await client.responses.create({ model: MODEL, input, tools: TOOLS, store: false });
    input.push(...(first.output as OpenAI.Responses.ResponseInputItem[]));
    const called = first.output.find(({ type }) => type === "function_call") as { call_id: string };
    input.push({ type: "function_call_output", call_id: called.call_id, output: "sunny" });
    model.reply = "It is sunny.";
    const second = await client.responses.create({ model: MODEL, input, tools: TOOLS });
    expect(second.output_text).toBe("It is sunny.");
    expect(model.prompts.at(-1)).toContain(
      `<think>\nA greeting.\n</think>\n\n${CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response>`,
    );
  });

  test("goes on from a stored response, without its instructions", async () => {
    model.reply = "Yes?";
    const first = await client.responses.create({ ...ASK, instructions: "Be kind." });
    model.reply = "Bye!";
    const stream = client.responses.stream({ model: MODEL, input: "Bye", previous_response_id: first.id });
    const second = await stream.finalResponse();
    expect(model.prompts.at(-1)).toStartWith(
      "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>",
    );
    expect((await client.responses.retrieve(second.id)).output_text).toBe("Bye!");
    await client.responses.delete(second.id);
    expect(await errorOf(post({ ...ASK, previous_response_id: second.id }))).toMatchObject({
      ...{ status: 404, code: "response_not_found", param: "previous_response_id" },
    });
    expect((await client.responses.retrieve(first.id)).output_text).toBe("Yes?");
  });

  test("goes on from items of stored responses, by their ids", async () => {
    model.reply = `${THOUGHT}Let me see.\n${CALL}`;
    const first = await client.responses.create({ ...ASK, tools: TOOLS });
    const [thoughts, text, call] = first.output as unknown as [
      { id: string },
      { id: string },
      { id: string; call_id: string },
    ];
    const input = [
      { role: "user" as const, content: "Hi" },
      ...[thoughts, text].map(({ id }) => ({ type: "item_reference" as const, id })),
      { id: call.id },
      { type: "function_call_output" as const, call_id: call.call_id, output: "sunny" },
    ];
    model.reply = "It is sunny.";
    const second = await client.responses.create({ model: MODEL, input, tools: TOOLS });
    expect(second.output_text).toBe("It is sunny.");
    const prompt = model.prompts.at(-1)!;
    expect(prompt).toContain(`${THOUGHT}Let me see.\n${CALL}<|im_end|>`);
    const whole = [...first.output, input.at(-1)!] as OpenAI.Responses.ResponseInput;
    await client.responses.create({ model: MODEL, input: [input[0]!, ...whole], tools: TOOLS });
    expect(model.prompts.at(-1)).toBe(prompt);
    const after = await client.responses.create({ ...ASK, previous_response_id: second.id });
    expect(after.output_text).toBe("It is sunny.");
    expect(model.prompts.at(-1)).toContain("sunny\n</tool_response>");
    for (const id of [`${text.id}0`, text.id.replace("msg", "rs"), "msg_x", "a"]) {
      const gone = await errorOf(post({ ...ASK, input: [{ type: "item_reference", id }] }));
      expect(gone).toMatchObject({ status: 404, code: "item_not_found", param: "input[0]" });
    }
  });

  test("does not grow by references beyond what a body may have", async () => {
    model.reply = "word ".repeat(4000);
    const { output } = await client.responses.create(ASK);
    const input = Array(300).fill({ type: "item_reference", id: output[0]!.id });
    expect(await errorOf(post({ ...ASK, input }))).toMatchObject({ status: 413, code: "request_too_large" });
  });

  test("of a response that was not to be stored cannot be gone on from", async () => {
    const { id } = await client.responses.create({ ...ASK, store: false });
    const gone = Promise.resolve(client.responses.retrieve(id));
    await expect(gone).rejects.toThrow("there is no response");
  });
});

describe("refused by the name of its own field:", () => {
  const cases: readonly (readonly [param: string, body: object])[] = [
    ["input", { input: 5 }],
    ["input[0].content[0]", { input: [{ role: "user", content: [{ type: "input_image" }] }] }],
    ["input[0].id", { input: [{ type: "item_reference" }] }],
    ["input[0]", { input: [{ type: "computer_call", id: "a" }] }],
    ["input[0].arguments", { input: [{ type: "function_call", call_id: "a", name: "b", arguments: "{" }] }],
    ["tools[0].type", { tools: [{ type: "web_search" }] }],
    ["tools[0].name", { tools: [{ type: "function", name: "" }] }],
    ["tool_choice.name", { tools: TOOLS, tool_choice: { type: "function", name: "x" } }],
    ["text.format", { text: { format: { type: "json_schema", name: "a", schema: { not: {} } } } }],
    ["max_output_tokens", { max_output_tokens: -1 }],
    ["background", { background: true }],
    ["include", { include: ["message.output_text.logprobs"] }],
    ["thinking_token_budget", { thinking_token_budget: -1 }],
  ];
  for (const [param, body] of cases) {
    test(param, async () => {
      const error = await errorOf(post({ ...ASK, ...body }));
      expect([400, 501]).toContain(error.status);
      expect(error.param).toBe(param);
    });
  }
});
