import { expect, setDefaultTimeout, test } from "bun:test";
import { median, percentile } from "../../bench/stats.ts";

setDefaultTimeout(300_000);

test("percentiles interpolate between the nearest values, whatever their order", () => {
  const values = [40, 10, 30, 20];
  expect([0, 0.5, 1].map((share) => percentile(values, share))).toEqual([10, 25, 40]);
  expect(percentile(values, 0.99)).toBeCloseTo(39.7, 9);
  expect(values).toEqual([40, 10, 30, 20]);
});

test("the median of an odd count is its middle", () => {
  expect(median([9, 1, 100])).toBe(9);
  expect(median([7])).toBe(7);
});

test("nothing has no percentile", () => {
  expect(() => percentile([], 0.5)).toThrow(RangeError);
});
