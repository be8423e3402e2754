import { expect, setDefaultTimeout, test } from "bun:test";
import { GrammarTooComplexError, SchemaError } from "../../../src/base/errors.ts";
import { plainOutputs } from "../../../src/grammar/grammar-source.ts";

setDefaultTimeout(300_000);

const PARAM = { param: "structuredOutputs" } as const;
const MILLION = Array.from({ length: 1e6 }, (_, i) => `value ${i}`);

test.each([
  ["a schema", { json: { enum: MILLION } }],
  ["a schema as text", { json: JSON.stringify({ enum: MILLION }) }],
  ["choices", { choice: MILLION }],
  ["a long choice", { choice: ["a".repeat(70_000)] }],
  ["a grammar", { grammar: `root ::= ${'"a" '.repeat(1e5)}` }],
])("%s of too many characters or entries is refused before anything is made of it", (_, outputs) => {
  const written = JSON.stringify;
  JSON.stringify = () => {
    throw new Error("it was copied");
  };
  try {
    expect(() => plainOutputs({ ...PARAM, ...outputs })).toThrow(GrammarTooComplexError);
  } finally {
    JSON.stringify = written;
  }
});

test("what is no JSON is refused", () => {
  expect(() => plainOutputs({ ...PARAM, json: { const: 1n } })).toThrow(SchemaError);
  expect(() => plainOutputs({ ...PARAM, json: () => {} })).toThrow(SchemaError);
});
