import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { z } from "zod";
import { InvalidRequestError, SchemaError } from "../../src/base/errors.ts";
import { AsyncLLM } from "../../src/index.ts";
import { createAsyncLLM, expectIdle, FAST_MODEL, FAST_OPTIONS, PROMPT, rejection } from "./support.ts";

setDefaultTimeout(300_000);

let llm: AsyncLLM;
beforeAll(async () => {
  llm = await createAsyncLLM();
});
afterAll(async () => {
  await expectIdle(llm);
  await llm.dispose();
});

const POINT = z.object({ x: z.int().min(-9).max(9), label: z.string().max(5).optional() });
const HOT = { temperature: 2, maxTokens: 100, seed: 9 };

test("prompts with and without a grammar together", async () => {
  const plain = { temperature: 1, maxTokens: 30, seed: 2 };
  const alone = await llm.generate(PROMPT, plain);
  const outputs = await llm.generate(
    [PROMPT, PROMPT, PROMPT],
    [{ ...HOT, n: 3, structuredOutputs: { json: POINT } }, plain, { ...HOT, responseFormat: POINT }],
  );
  expect(outputs[1]!.outputs[0]!.tokenIds).toEqual(alone.outputs[0]!.tokenIds);
  for (const { text } of [...outputs[0]!.outputs, ...outputs[2]!.outputs]) POINT.parse(JSON.parse(text));
});

test("one that is refused refuses all, before anything is computed", async () => {
  const { steps } = llm.stats;
  const bad = { structuredOutputs: { json: { contains: {} } } };
  const error = await rejection(llm.generate([PROMPT, PROMPT], [HOT, bad]));
  expect(error).toBeInstanceOf(SchemaError);
  expect(error).toMatchObject({ keyword: "contains", path: "", param: "structuredOutputs" });
  expect(llm.stats.steps).toBe(steps);
});

test("an abort in the middle leaves nothing behind", async () => {
  const endless = { ...HOT, maxTokens: 500, structuredOutputs: { regex: "[a-z]*" }, ignoreEos: true };
  const deltas = llm.stream(PROMPT, endless);
  expect((await deltas.next()).done).toBe(false);
  await deltas.return();
  await expectIdle(llm);
});

test("a zod schema that is no JSON Schema is refused", async () => {
  const error = await rejection(llm.generate(PROMPT, { responseFormat: z.object({ at: z.date() }) }));
  expect(error).toBeInstanceOf(SchemaError);
  expect(error).toMatchObject({ param: "responseFormat" });
});

test("without a tokenizer there are no grammars", async () => {
  const fast = await AsyncLLM.create(FAST_MODEL, FAST_OPTIONS);
  const error = await rejection(
    fast.generate({ promptTokenIds: [1] }, { structuredOutputs: { regex: "a" } }),
  );
  expect(error).toBeInstanceOf(InvalidRequestError);
  await fast.dispose();
});
