import { expect, setDefaultTimeout, test } from "bun:test";
import { parseExactJson } from "../../../src/base/exact-json.ts";

setDefaultTimeout(300_000);

test("numbers that would lose their spelling keep it, also when they are posted", () => {
  const text = '[1.0, 1e3, -0.0, 2.50, 1, 9007199254740993, -9223372036854775808, "1.0", {"1e3": 12.00}]';
  expect(structuredClone(parseExactJson(text))).toEqual([
    ...[new Number(1), new Number(1000), new Number(-0), 2.5, 1, 9007199254740993n, -9223372036854775808n],
    ...["1.0", { "1e3": new Number(12) }],
  ]);
});

test("all else is as JSON.parse has it", () => {
  const text = '{"a": [1, 2.5, "version 3. ", true, null], "b": {"__proto__": 1}}';
  expect(parseExactJson(text)).toEqual(JSON.parse(text));
  expect(() => parseExactJson('{"a": 1.0')).toThrow(SyntaxError);
});
