import { expect, setDefaultTimeout, test } from "bun:test";
import { encodeFloat8, FLOAT8_MAX, FLOAT8_VALUES, toFloat8 } from "../../../src/base/float8.ts";
import { Random } from "../../contract/random.ts";

setDefaultTimeout(300_000);

/** Finite codes of positive values, ascending. */
const CODES = Array.from({ length: 0x7f }, (_, code) => code);

/** The nearest code by looking at all of them; of two, the even one. */
function nearest(value: number): number {
  const size = Math.min(Math.abs(Math.fround(value)), FLOAT8_MAX);
  const distance = (code: number) => Math.abs(FLOAT8_VALUES[code]! - size);
  const code = CODES.reduce((best, each) => {
    if (distance(each) !== distance(best)) return distance(each) < distance(best) ? each : best;
    return each % 2 === 0 ? each : best;
  });
  return code | (value < 0 ? 0x80 : 0);
}

test("each value is the code of itself", () => {
  for (const sign of [0, 0x80])
    for (const code of CODES) expect(toFloat8(FLOAT8_VALUES[code | sign]!)).toBe(code | sign);
  expect(FLOAT8_VALUES[0x7e]).toBe(448);
  expect(FLOAT8_VALUES[1]).toBe(2 ** -9);
  expect(FLOAT8_VALUES.map((value) => Number(Number.isNaN(value))).reduce((sum, is) => sum + is)).toBe(2);
});

test("other values have the nearest code, ties the even one", () => {
  const between = CODES.slice(1).map((code) => (FLOAT8_VALUES[code]! + FLOAT8_VALUES[code - 1]!) / 2);
  const random = new Random(3);
  const values = Array.from({ length: 5000 }, () => (random.uniform() - 0.5) * 2 ** (random.int(22) - 11));
  for (const value of [
    ...between,
    ...between.map((each) => -each),
    ...values,
    447,
    449,
    460,
    1e9,
    -1e9,
    1e-9,
  ])
    expect([value, toFloat8(value)]).toEqual([value, nearest(value)]);
  expect(toFloat8(Number.NaN) & 0x7f).toBe(0x7f);
  expect(toFloat8(Infinity)).toBe(0x7e);
});

test("many at once are the same, times a factor", () => {
  const values = new Random(4).normals(4096, 100);
  values.set([0, -0, 448, -500, 2 ** -9, 2 ** -10, 0.0156]);
  const expected = values.map((value) => toFloat8(Math.fround(value * 0.5)));
  const codes = new Uint8Array(values.length);
  encodeFloat8(values, 0.5, codes);
  expect([...codes]).toEqual([...expected]);
});
