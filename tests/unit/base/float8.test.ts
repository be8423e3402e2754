import { expect, setDefaultTimeout, test } from "bun:test";
import { FLOAT8_MAX, FLOAT8_VALUES, toFloat8 } from "../../../src/base/float8.ts";

setDefaultTimeout(300_000);

const FINITE = [...FLOAT8_VALUES].filter((value) => !Number.isNaN(value));

test("256 codes: the values of the format", () => {
  expect([0x00, 0x01, 0x07, 0x08, 0x38, 0x3c, 0x7e].map((code) => FLOAT8_VALUES[code]!)).toEqual([
    ...[0, 2 ** -9, 7 * 2 ** -9, 2 ** -6, 1, 1.5, 448],
  ]);
  expect([0x7f, 0xff].every((code) => Number.isNaN(FLOAT8_VALUES[code]))).toBe(true);
  for (let code = 0; code < 0x7f; code++) expect(FLOAT8_VALUES[code | 0x80]).toBe(-FLOAT8_VALUES[code]!);
  expect(new Set(FINITE.map(Math.abs)).size).toBe(127);
  expect(Math.max(...FINITE)).toBe(FLOAT8_MAX);
});

test("every value is its own code", () => {
  for (const [code, value] of FLOAT8_VALUES.entries())
    expect(toFloat8(value)).toBe(Number.isNaN(value) ? 0x7f : code);
});

test("the nearest value, and of two the even code", () => {
  for (let code = 0; code < 0x7e; code++) {
    const [low, high] = [FLOAT8_VALUES[code]!, FLOAT8_VALUES[code + 1]!];
    const middle = (low + high) / 2;
    for (const sign of [1, -1]) {
      const of = (value: number) => toFloat8(sign * value) & 0x7f;
      expect([of(middle), of(middle * (1 - 2 ** -20)), of(middle * (1 + 2 ** -20))]).toEqual([
        code % 2 === 0 ? code : code + 1,
        ...[code, code + 1],
      ]);
    }
  }
});

test("what is too large becomes the largest, NaN stays NaN", () => {
  expect([449, 464, 480, 1e30, Infinity].map(toFloat8)).toEqual(Array(5).fill(0x7e));
  expect([-449, -1e30, -Infinity].map(toFloat8)).toEqual(Array(3).fill(0xfe));
  expect(toFloat8(Number.NaN)).toBe(0x7f);
  expect([toFloat8(0), toFloat8(-0)]).toEqual([0, 0x80]);
});
