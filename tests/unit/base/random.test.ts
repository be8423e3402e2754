import { expect, setDefaultTimeout, test } from "bun:test";
import { SplitMix64 } from "../../../src/base/random.ts";

setDefaultTimeout(300_000);

function take(seed: number | bigint, count: number): bigint[] {
  const stream = new SplitMix64(seed);
  return Array.from({ length: count }, () => stream.next());
}

test("the published first outputs of seed 1234567", () => {
  expect(take(1234567, 5)).toEqual([
    6457827717110365317n,
    3203168211198807973n,
    9817491932198370423n,
    4593380528125082431n,
    16408922859458223821n,
  ]);
});

test("seeds count modulo 2^64, and streams are independent of each other", () => {
  expect(take(2n ** 64n + 5n, 3)).toEqual(take(5, 3));
  expect(take(-1n, 3)).toEqual(take(2n ** 64n - 1n, 3));
  const [a, b] = [new SplitMix64(1), new SplitMix64(1)];
  const first = [a.next(), a.next()];
  expect([b.next(), b.next()]).toEqual(first);
});

test("outputs fill 64 bits", () => {
  const all = take(0, 1000);
  expect(all.every((value) => value >= 0n && value < 2n ** 64n)).toBe(true);
  expect(new Set(all).size).toBe(1000);
  // Each bit is set about half of the time; 6 standard deviations are 95.
  for (let bit = 0n; bit < 64n; bit++) {
    const ones = all.filter((value) => (value >> bit) & 1n).length;
    expect(Math.abs(ones - 500)).toBeLessThan(95);
  }
});
