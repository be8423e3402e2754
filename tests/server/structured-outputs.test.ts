import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject } from "ai";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { errorOf, HI, MODEL, PROMPT, TestServer } from "./support.ts";

setDefaultTimeout(300_000);

let server: TestServer;
let client: OpenAI;
beforeAll(async () => {
  server = await TestServer.start();
  client = new OpenAI({ baseURL: server.baseURL, apiKey: "none", maxRetries: 0 });
});
afterAll(async () => {
  expect(server.llm.numUnfinished).toBe(0);
  await server[Symbol.asyncDispose]();
});

const CITY = z.object({
  city: z.string().max(10),
  population: z.int().min(0).max(99_000_000),
  tags: z.array(z.enum(["sea", "hills"])).max(2),
});
const HOT = { temperature: 2, max_tokens: 200, seed: 3 } as const;

test("the openai client parses what its zod helper asks for", async () => {
  const reply = await client.chat.completions.parse({
    ...{ model: MODEL, messages: HI, ...HOT, response_format: zodResponseFormat(CITY, "city") },
  });
  expect(reply.choices[0]!.finish_reason).toBe("stop");
  CITY.parse(reply.choices[0]!.message.parsed);
});

test("a stream brings the same text", async () => {
  const body = { model: MODEL, messages: HI, ...HOT, response_format: zodResponseFormat(CITY, "city") };
  const whole = await client.chat.completions.create(body);
  let text = "";
  for await (const { choices } of await client.chat.completions.create({ ...body, stream: true }))
    text += choices[0]?.delta.content ?? "";
  expect(text).toBe(whole.choices[0]!.message.content!);
});

test("the AI SDK generates an object", async () => {
  const provider = createOpenAICompatible({
    ...{ name: "octavo", baseURL: server.baseURL, apiKey: "none", supportsStructuredOutputs: true },
  });
  const { object } = await generateObject({
    ...{
      model: provider.chatModel(MODEL),
      schema: CITY,
      messages: HI,
      temperature: 2,
      seed: 3,
      maxRetries: 0,
    },
    maxOutputTokens: 200,
  });
  CITY.parse(object);
});

const text = async (fields: object) => {
  const reply = await server.post("/v1/completions", { prompt: PROMPT, ...HOT, ...fields });
  expect(reply.status).toBe(200);
  return ((await reply.json()) as { choices: { text: string }[] }).choices[0]!.text;
};

describe("the fields of vLLM and SGLang", () => {
  test.each<[string, object, RegExp]>([
    ["structured_outputs.regex", { structured_outputs: { regex: "[ab]{3}" } }, /^[ab]{3}$/],
    ["structured_outputs.choice", { structured_outputs: { choice: ["x", "yy"], regex: null } }, /^(x|yy)$/],
    ["guided_json", { guided_json: { type: "integer", minimum: 10, maximum: 12 } }, /^1[012]$/],
    ["guided_json as text", { guided_json: '{"const":[1]}' }, /^\[\s*1\s*\]$/],
    ["guided_regex", { guided_regex: "a|b" }, /^[ab]$/],
    ["guided_choice", { guided_choice: ["left", "right"] }, /^(left|right)$/],
    ["guided_grammar", { guided_grammar: 'root ::= "<" [0-9] ">"' }, /^<\d>$/],
    ["regex", { regex: "q{2}" }, /^qq$/],
    ["ebnf", { ebnf: 'root ::= "ok"' }, /^ok$/],
  ])("%s", async (_, fields, expected) => {
    expect(await text(fields)).toMatch(expected);
  });

  test("json_object, on its own and compact", async () => {
    const fields = {
      structured_outputs: { json_object: true, disable_any_whitespace: true },
      max_tokens: 12,
    };
    expect(await text(fields)).toMatch(/^\{("|\})/);
    expect(await text({ response_format: { type: "json_object" }, max_tokens: 12 })).toMatch(/^\{/);
  });
});

describe("refusals are 400s that name the field", () => {
  const format = (schema: unknown, rest: object = {}) => ({
    response_format: { type: "json_schema", json_schema: { name: "x", schema, ...rest } },
  });
  const deep = Array(90)
    .fill(0)
    .reduce((inner: object) => ({ items: inner }), {});
  test.each<[string, object, string, string]>([
    ["a keyword", format({ type: "array", contains: {} }), "response_format", "invalid_schema"],
    ["a reference to nowhere", format({ $ref: "#/$defs/a" }), "response_format", "invalid_schema"],
    ["a circle of references", format({ $ref: "#" }), "response_format", "invalid_schema"],
    [
      "a pattern that explodes",
      format({ pattern: "(a|b)*a(a|b){18}" }),
      "response_format",
      "grammar_too_complex",
    ],
    ["no schema at all", format(5), "response_format", "invalid_schema"],
    ["a name with a space", format({}, { name: "a b" }), "response_format", "invalid_value"],
    ["an unknown type", { response_format: { type: "yaml" } }, "response_format", "invalid_value"],
    ["a regex", { guided_regex: "(" }, "structured_outputs", "invalid_regex"],
    ["a grammar", { guided_grammar: "root ::= a" }, "structured_outputs", "invalid_grammar"],
    ["two at once", { guided_regex: "a", guided_choice: ["a"] }, "guided_choice", "invalid_value"],
    [
      "two kinds",
      { structured_outputs: { regex: "a", choice: ["a"] } },
      "structured_outputs",
      "invalid_value",
    ],
    ["no kind", { structured_outputs: {} }, "structured_outputs", "invalid_value"],
    ["an unknown kind", { structured_outputs: { xml: "a" } }, "structured_outputs", "invalid_value"],
  ])("%s", async (_, fields, param, code) => {
    const error = await errorOf(server.post("/v1/completions", { prompt: PROMPT, ...fields }));
    expect(error).toMatchObject({ status: 400, param, code });
  });

  test("what is nested as deep as a body may be is converted", async () => {
    expect(await text({ guided_json: deep, max_tokens: 2 })).toStartWith("[");
  });
});
