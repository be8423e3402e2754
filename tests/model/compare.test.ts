import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  compareGreedy,
  compareLogprobs,
  compareTopLogprobs,
  cosine,
  type GreedyReference,
  maxErrorInStd,
  relativeError,
} from "./compare.ts";

setDefaultTimeout(300_000);

describe("relativeError", () => {
  test("is the ratio of norms", () => {
    expect(relativeError([3, 4], [3, 4])).toBe(0);
    expect(relativeError([3, 4.5], [3, 4])).toBeCloseTo(0.1, 12);
    expect(relativeError([0, 0], [3, 4])).toBe(1);
  });

  test("passes no bound when a value is NaN or the reference is zero", () => {
    expect(relativeError([Number.NaN, 4], [3, 4])).toBeNaN();
    expect(relativeError([0, 0], [0, 0])).toBeNaN();
  });

  test("rejects vectors of different lengths", () => {
    expect(() => relativeError([1], [1, 2])).toThrow("compared 1 values with 2");
    expect(() => relativeError([1, 2, 3], [1, 2])).toThrow();
  });
});

describe("maxErrorInStd", () => {
  test("measures the worst value against the spread, not the size, of the reference", () => {
    expect(maxErrorInStd([101, 99], [101, 99])).toBe(0);
    expect(maxErrorInStd([101, 98.5], [101, 99])).toBeCloseTo(0.5, 12);
  });

  test("finds one wrong value among many that relativeError drowns", () => {
    const expected = Float32Array.from({ length: 10_000 }, (_, i) => (i % 2 ? 1 : -1));
    const actual = expected.slice();
    actual[7]! += 1;
    expect(maxErrorInStd(actual, expected)).toBeCloseTo(1, 6);
    expect(relativeError(actual, expected)).toBeLessThan(0.011);
  });

  test("passes no bound when a value is NaN or the reference is constant", () => {
    expect(maxErrorInStd([1, Number.NaN, 3], [1, 2, 3])).toBeNaN();
    expect(maxErrorInStd([2, 2], [2, 2])).toBeNaN();
  });
});

test("cosine sees direction and not scale", () => {
  expect(cosine([2, 4], [1, 2])).toBeCloseTo(1, 12);
  expect(cosine([-1, -2], [1, 2])).toBeCloseTo(-1, 12);
  expect(cosine([2, -1], [1, 2])).toBe(0);
  expect(cosine([0, 0], [1, 2])).toBeNaN();
});

describe("compareGreedy", () => {
  const reference: GreedyReference = {
    tokens: [10, 11, 12],
    logprobs: [-0.1, -0.2, -0.3],
    rivals: [
      [
        [20, 2],
        [21, 3],
        [22, 4],
      ],
      [
        [30, 0.01],
        [31, 0.04],
        [32, 1],
      ],
      [
        [40, 2],
        [41, 3],
        [42, 4],
      ],
    ],
  };

  test("counts every token of an equal continuation", () => {
    expect(compareGreedy([10, 11, 12], reference, 0)).toBe(3);
  });

  test("stops at a near-tie that went the other way", () => {
    expect(compareGreedy([10, 30, 99], reference, 0.05)).toBe(1);
    expect(compareGreedy([10, 31, 99], reference, 0.05)).toBe(1);
  });

  test("goes on past a near-tie that went the same way", () => {
    expect(() => compareGreedy([10, 11, 40], reference, 0.05)).toThrow("step 2: token 40, expected 12");
  });

  test("rejects another token where the reference is sure", () => {
    expect(() => compareGreedy([20, 11, 12], reference, 0.05)).toThrow("step 0");
    expect(() => compareGreedy([10, 30, 12], reference, 0.005)).toThrow("step 1");
  });

  test("rejects a token at a near-tie that is no part of it", () => {
    expect(() => compareGreedy([10, 32, 12], reference, 0.05)).toThrow("step 1");
    expect(() => compareGreedy([10, 99, 12], reference, 0.05)).toThrow("step 1");
  });

  test("rejects a continuation that ended early", () => {
    expect(() => compareGreedy([10, 11], reference, 0.05)).toThrow("compared 2 values with 3");
  });
});

describe("compareLogprobs", () => {
  test("returns the largest difference", () => {
    expect(compareLogprobs([-1, -2.25], [-1.125, -2], 0.3)).toBe(0.25);
  });

  test("rejects a difference beyond the tolerance, NaN, infinity and missing values", () => {
    expect(() => compareLogprobs([-1, -2.25], [-1, -2], 0.2)).toThrow("logprob 1");
    expect(() => compareLogprobs([Number.NaN], [-1], 0.2)).toThrow();
    expect(() => compareLogprobs([Number.NEGATIVE_INFINITY], [-1], 0.2)).toThrow();
    expect(() => compareLogprobs([], [-1], 0.2)).toThrow();
  });
});

describe("compareTopLogprobs", () => {
  const expected = { ids: [5, 6, 7], logprobs: [-0.5, -1, -1.05] };

  test("accepts neighbours that change places within the tolerance", () => {
    compareTopLogprobs({ ids: [5, 7, 6], logprobs: [-0.5, -1.01, -1.03] }, expected, 0.05);
  });

  test("accepts another token at the end of the list, as likely as the one it replaced", () => {
    compareTopLogprobs({ ids: [5, 6, 8], logprobs: [-0.5, -1, -1.04] }, expected, 0.05);
  });

  test("rejects swapped, replaced and shifted tokens", () => {
    expect(() =>
      compareTopLogprobs({ ids: [6, 5, 7], logprobs: [-0.5, -1, -1.05] }, expected, 0.05),
    ).toThrow();
    expect(() => compareTopLogprobs({ ids: [8, 6, 7], logprobs: [-0.5, -1, -1.05] }, expected, 0.05)).toThrow(
      "token 5: logprob not listed",
    );
    expect(() =>
      compareTopLogprobs({ ids: [5, 6, 7], logprobs: [-0.6, -1, -1.05] }, expected, 0.05),
    ).toThrow();
    expect(() => compareTopLogprobs({ ids: [5, 6], logprobs: [-0.5, -1] }, expected, 0.05)).toThrow();
  });
});
