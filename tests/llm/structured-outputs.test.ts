import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { z } from "zod";
import { InvalidRequestError, SchemaError } from "../../src/base/errors.ts";
import { AsyncLLM, type LLM } from "../../src/index.ts";
import { collect, complete, createLLM, expectUsable, PROMPT, rejection } from "./support.ts";

setDefaultTimeout(300_000);

let llm: LLM;
beforeAll(async () => {
  llm = await createLLM();
});
afterAll(async () => {
  await expectUsable(llm);
  llm.dispose();
});

const HOT = { temperature: 2, maxTokens: 200, seed: 5 };

const PERSON = z.object({
  name: z.string().max(12),
  age: z.int().min(0).max(150),
  tags: z.array(z.enum(["a", "b"])).max(3),
  pet: z.discriminatedUnion("kind", [
    z.object({ kind: z.literal("cat"), lives: z.int().min(1).max(9) }),
    z.object({ kind: z.literal("dog"), good: z.boolean() }),
  ]),
});

test("a zod schema holds the reply of a hot model to it", async () => {
  const { text, finishReason } = await complete(llm, { ...HOT, structuredOutputs: { json: PERSON } });
  expect(finishReason).toBe("stop");
  PERSON.parse(JSON.parse(text));
});

test("completions of one request differ, and all of them are valid", async () => {
  const [output] = await llm.generate(PROMPT, { ...HOT, n: 4, responseFormat: PERSON });
  const values = output!.outputs.map(({ text }) => PERSON.parse(JSON.parse(text)));
  expect(new Set(values.map((value) => JSON.stringify(value))).size).toBeGreaterThan(1);
});

test("a regular expression, a choice and a grammar are kept to", async () => {
  const date = await complete(llm, { ...HOT, structuredOutputs: { regex: "\\d{4}-\\d{2}" } });
  expect(date.text).toMatch(/^\d{4}-\d{2}$/);
  const choice = await complete(llm, { ...HOT, structuredOutputs: { choice: ["yes", "no"] } });
  expect(["yes", "no"]).toContain(choice.text);
  const grammar = 'root ::= "<" [a-z]{2,5} ">"\n';
  expect((await complete(llm, { ...HOT, structuredOutputs: { grammar } })).text).toMatch(/^<[a-z]{2,5}>$/);
  const any = await complete(llm, {
    ...HOT,
    maxTokens: 400,
    structuredOutputs: {
      json: { type: "array", items: { type: "integer" }, maxItems: 4 },
      disableAnyWhitespace: true,
    },
  });
  expect(JSON.stringify(JSON.parse(any.text))).toBe(any.text);
});

describe("a conversation's grammar", () => {
  /** A template of a model that thinks unless it is told not to. */
  const chatTemplate =
    "{{ messages[-1].content }}{% if enable_thinking is defined %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}";
  const messages = [{ role: "user", content: PROMPT }];
  const greedy = { temperature: 0, maxTokens: 6 };
  const structuredOutputs = { choice: ["yes"] };

  test("begins when the model's thoughts end", async () => {
    await using thinking = await createLLM({ chatTemplate });
    const reply = async (params: object, chatTemplateKwargs = {}) =>
      (await thinking.chat(messages, { ...greedy, ...params }, { chatTemplateKwargs }))[0]!.outputs[0]!;
    const thought = { text: "Once upon a time there was", finishReason: "length" };
    expect(await reply({ structuredOutputs })).toMatchObject(thought);
    const past = await reply({ structuredOutputs }, { enable_thinking: false });
    expect(past).toMatchObject({ text: "yes", finishReason: "stop" });
    expect((await complete(thinking, { ...greedy, structuredOutputs })).text).toBe("yes");
  });

  test("does so with AsyncLLM, too", async () => {
    await using thinking = await AsyncLLM.create(undefined, { device: "cpu", chatTemplate });
    const reply = async (params: object, chatTemplateKwargs = {}) =>
      (await thinking.generate({ messages, chat: { chatTemplateKwargs } }, { ...greedy, ...params }))
        .outputs[0]!.text;
    expect(await reply({ structuredOutputs })).toBe("Once upon a time there was");
    expect(await reply({ structuredOutputs }, { enable_thinking: false })).toBe("yes");
  });
});

test("neighbours without a grammar draw the same tokens as alone", async () => {
  const plain = { temperature: 1, maxTokens: 40, seed: 11 };
  const alone = await complete(llm, plain);
  const [together, structured] = await Promise.all([
    complete(llm, plain),
    complete(llm, { ...HOT, structuredOutputs: { json: PERSON } }),
  ]);
  expect(together.tokenIds).toEqual(alone.tokenIds);
  PERSON.parse(JSON.parse(structured.text));
});

test("a stream brings the same text, and leaving it ends its matcher", async () => {
  const params = { ...HOT, structuredOutputs: { json: PERSON } };
  const whole = await complete(llm, params);
  const deltas = await collect(llm.stream(PROMPT, params));
  expect(deltas.map(({ text }) => text).join("")).toBe(whole.text);
  for await (const delta of llm.stream(PROMPT, params)) if (delta.text.length > 0) break;
});

test("without an end-of-sequence token a complete text ends, too", async () => {
  const { text, finishReason } = await complete(llm, {
    ...HOT,
    ignoreEos: true,
    structuredOutputs: { choice: ["red", "blue"] },
  });
  expect(["red", "blue"]).toContain(text);
  expect(finishReason).toBe("stop");
});

describe("refusals", () => {
  test("name the keyword and where it is", async () => {
    const json = { type: "object", properties: { a: { type: "array", uniqueItems: true } } };
    const error = (await rejection(llm.generate(PROMPT, { structuredOutputs: { json } }))) as SchemaError;
    expect(error).toBeInstanceOf(SchemaError);
    expect(error).toMatchObject({ keyword: "uniqueItems", path: "/properties/a", code: "invalid_schema" });
  });

  test.each([
    ["a regular expression that is not regular", { regex: "(a)\\1" }, "invalid_regex"],
    ["a grammar without a root", { grammar: 'a ::= "b"' }, "invalid_grammar"],
    ["a pattern of too many states", { regex: "(a|b)*a(a|b){18}" }, "grammar_too_complex"],
  ])("%s", async (_, structuredOutputs, code) => {
    const error = await rejection(llm.generate(PROMPT, { structuredOutputs }));
    expect(error).toBeInstanceOf(InvalidRequestError);
    expect((error as InvalidRequestError).code).toBe(code);
  });
});
