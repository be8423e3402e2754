import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { Rendezvous } from "../../bench/rendezvous.ts";
import {
  expectedSums,
  fromBfloat16,
  largestError,
  randomValues,
  toBfloat16,
  withoutSigns,
} from "../../bench/sum-reference.ts";
import type { FakeRankOutcome, FakeRankTask } from "./fake-rank.ts";

setDefaultTimeout(300_000);

describe("the reference", () => {
  test("rounds to the nearest, ties to even", () => {
    const cases: [number, number][] = [
      ...([
        [1, 0x3f80],
        [1 + 2 ** -8, 0x3f80],
        [1 + 3 * 2 ** -8, 0x3f82],
        [-0, 0x8000],
      ] as const),
      ...([
        [Infinity, 0x7f80],
        [3.4e38, 0x7f80],
        [Number.NaN, 0x7fff],
        [2 ** -133, 0x0001],
      ] as const),
    ].map(([value, bits]) => [value, bits]);
    for (const [value, bits] of cases) expect(toBfloat16(value)).toBe(bits);
    for (const bits of [0x3f80, 0x0001, 0xc2f0, 0x7f80]) expect(toBfloat16(fromBfloat16(bits))).toBe(bits);
  });

  test("sums in float32 in the order of the ranks and rounds once", () => {
    const bits = (...values: number[]) => Uint16Array.from(values, toBfloat16);
    // In bfloat16, 256 + 1 is 256; and 2 ** 24 + 1 is lost in float32 unless 2 ** 24 has gone before.
    const parts = [bits(1, 2 ** 24, 1), bits(1, 1, -1), bits(0, -(2 ** 24), 0)];
    const sums = [...expectedSums(bits(256, 0, -0), parts)].map(fromBfloat16);
    expect(sums).toEqual([258, 0, 0]);
  });

  test("is near float64, and what is not is found", () => {
    const parts = [1, 2, 3].map((seed) => randomValues(5000, seed));
    const residual = randomValues(5000, 4);
    const sums = expectedSums(residual, parts);
    expect(largestError(sums, residual, parts)).toBeLessThan(0.51);
    const at = sums.findIndex((value) => Math.abs(fromBfloat16(value)) > 1 && value < 0x7f00);
    sums[at]! += 2;
    expect(largestError(sums, residual, parts)).toBeGreaterThan(1);
  });

  test("has special values among its random ones, and the same for a seed", () => {
    const values = randomValues(20_000, 5);
    for (const special of [0, 0x8000, 0x7f80, 0x7fc0, 1]) expect(values).toContain(special);
    expect(randomValues(20_000, 5)).toEqual(values);
    expect(withoutSigns(Uint16Array.of(0x8000, 0x8001))).toEqual(Uint16Array.of(0, 0x8001));
  });
});

/** The outcome of each rank, the last of which may get a sum wrong. */
async function run(ranks: number, wrong?: number): Promise<FakeRankOutcome[]> {
  const memory = Rendezvous.allocate(ranks);
  const workers = Array.from({ length: ranks }, () => new Worker(new URL("./fake-rank.ts", import.meta.url)));
  const outcomes = workers.map((worker, rank) => {
    const { promise, resolve, reject } = Promise.withResolvers<FakeRankOutcome>();
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message));
    const task: FakeRankTask = { memory, rank, size: ranks };
    worker.postMessage(rank === ranks - 1 && wrong !== undefined ? { ...task, wrong } : task);
    return promise;
  });
  try {
    return await Promise.all(outcomes);
  } finally {
    for (const worker of workers) worker.terminate();
  }
}

describe("the checks, on threads that exchange messages as GPUs do", () => {
  test.each([2, 4])("of %d ranks pass", async (ranks) => {
    const copies = ranks === 2 ? ["copies"] : [];
    const done = ["within true", "sums", "gathers", "graphs", ...copies, "times"];
    expect(await run(ranks)).toEqual(Array.from({ length: ranks }, () => ({ done })));
  });

  test("find the one bit that one rank has wrong, and end the others", async () => {
    const [first, second] = await run(2, 5);
    expect(second!.error).toMatch(/^sum 5 of \d+ elements: element 0 is .*, expected /);
    expect(first!.error).toBe("rank 0 cannot go on: another rank has failed");
  });
});
