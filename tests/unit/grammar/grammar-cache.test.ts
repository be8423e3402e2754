import { expect, setDefaultTimeout, test } from "bun:test";
import { GrammarCache } from "../../../src/grammar/grammar-cache.ts";
import { grammarOf } from "../../../src/grammar/grammar-source.ts";

setDefaultTimeout(300_000);

const regex = (pattern: string) => ({ param: "structuredOutputs", regex: pattern }) as const;

test("the same request has the same grammar, and another one another", () => {
  const cache = new GrammarCache();
  for (const pattern of ["a", "b", "a"])
    expect(cache.grammarOf(regex(pattern))).toBe(grammarOf(regex(pattern)));
  const compact = { param: "structuredOutputs", json: "{}", disableAnyWhitespace: true } as const;
  expect(cache.grammarOf(compact)).not.toBe(cache.grammarOf({ ...compact, disableAnyWhitespace: false }));
});

test("what is refused is refused again", () => {
  const cache = new GrammarCache();
  for (let i = 0; i < 2; i++) expect(() => cache.grammarOf(regex("("))).toThrow("without its )");
});

test("ten thousand different requests do not fill the memory", () => {
  const cache = new GrammarCache();
  const choices = (i: number) =>
    ({ param: "structuredOutputs", choice: [`${i}`, "x".repeat(1000)] }) as const;
  for (let i = 0; i < 10_000; i++) cache.grammarOf(choices(i));
  expect(cache.size).toBeGreaterThan(1000);
  expect(cache.size).toBeLessThan(5000);
  expect(cache.grammarOf(choices(0))).toBe(grammarOf(choices(0)));
});
