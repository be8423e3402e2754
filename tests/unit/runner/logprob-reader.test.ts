import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  concatLogprobs,
  logprobWords,
  readLogprobs,
  sliceLogprobs,
} from "../../../src/runner/logprob-reader.ts";
import type { LogprobRows } from "../../../src/runner/types.ts";

setDefaultTimeout(300_000);

/** Rows [first, first + count) with values that tell where they came from. */
function rows(first: number, count: number, topCount: number): LogprobRows {
  const index = Array.from({ length: count }, (_, i) => first + i);
  const top = index.flatMap((row) => Array.from({ length: topCount }, (_, k) => 10 * row + k));
  return {
    topCount,
    chosenIds: Int32Array.from(index),
    chosenLogprobs: Float32Array.from(index, (row) => -row),
    chosenRanks: Int32Array.from(index, (row) => row + 1),
    topIds: Int32Array.from(top),
    topLogprobs: Float32Array.from(top, (id) => -id),
  };
}

describe("slicing", () => {
  test("takes the rows asked for, and of each the best entries", () => {
    expect(sliceLogprobs(rows(0, 4, 3), 1, 3, 2)).toEqual({
      topCount: 2,
      chosenIds: Int32Array.of(1, 2),
      chosenLogprobs: Float32Array.of(-1, -2),
      chosenRanks: Int32Array.of(2, 3),
      topIds: Int32Array.of(10, 11, 20, 21),
      topLogprobs: Float32Array.of(-10, -11, -20, -21),
    });
  });

  test("no top entries leave the chosen ones", () => {
    const slice = sliceLogprobs(rows(0, 2, 3), 0, 2, 0);
    expect(slice.topIds).toHaveLength(0);
    expect(slice.chosenIds).toEqual(Int32Array.of(0, 1));
  });

  test("a slice is a copy", () => {
    const all = rows(0, 2, 1);
    const slice = sliceLogprobs(all, 0, 1, 1);
    all.topIds[0] = 99;
    all.chosenIds[0] = 99;
    expect([slice.topIds[0], slice.chosenIds[0]]).toEqual([0, 0]);
  });
});

describe("joining", () => {
  test("chunks come one after the other", () => {
    expect(concatLogprobs([rows(0, 2, 3), rows(2, 1, 3), rows(3, 4, 3)])).toEqual(rows(0, 7, 3));
  });

  test("slices joined again are the whole", () => {
    const all = rows(0, 5, 2);
    const parts = [0, 1, 3].map((start, i) => sliceLogprobs(all, start, [1, 3, 5][i]!, 2));
    expect(concatLogprobs(parts)).toEqual(all);
  });

  test("without top entries too", () => {
    expect(concatLogprobs([rows(0, 1, 0), rows(1, 1, 0)])).toEqual(rows(0, 2, 0));
  });
});

test("what the device computed is read from its words; ranks there count from 0", () => {
  const { topCount, chosenIds, chosenLogprobs, topIds, topLogprobs } = rows(1, 3, 2);
  const bits = (floats: Float32Array) => [...new Int32Array(floats.buffer)];
  const words = Int32Array.of(...bits(chosenLogprobs), 1, 2, 3, ...topIds, ...bits(topLogprobs), 77);
  expect(words).toHaveLength(logprobWords({ count: 3, topCount }) + 1);
  const read = readLogprobs({ count: 3, topCount }, words, chosenIds);
  words.fill(0);
  expect(read).toEqual(rows(1, 3, 2));
});
