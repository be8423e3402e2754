import { expect, setDefaultTimeout, test } from "bun:test";
import { isLargerThan } from "../../../src/base/data-size.ts";

setDefaultTimeout(300_000);

test.each<[string, unknown, boolean]>([
  ["a text", "a".repeat(100), false],
  ["a longer text", "a".repeat(101), true],
  [
    "texts deep inside",
    { messages: [{ content: "a".repeat(50) }, { content: [{ text: "a".repeat(50) }] }] },
    true,
  ],
  ["many entries", Array(101).fill(null), true],
  ["fewer of them", Array(100).fill(null), false],
  ["long keys", { ["k".repeat(101)]: 1 }, true],
  ["bytes", new Uint8Array(101), true],
  ["numbers, null and nothing", [1, null, undefined, true, 2n], false],
])("%s", (_, value, expected) => {
  expect(isLargerThan(100, value)).toBe(expected);
});

test("what holds itself is endless, and found to be large", () => {
  const value: unknown[] = [];
  value.push(value);
  expect(isLargerThan(100, value)).toBe(true);
});
