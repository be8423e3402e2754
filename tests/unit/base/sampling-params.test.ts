import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { InvalidRequestError } from "../../../src/base/errors.ts";
import { resolveSamplingParams, type SamplingParams } from "../../../src/base/sampling-params.ts";

setDefaultTimeout(300_000);

const LIMITS = { vocabSize: 100, maxLogprobs: 20 };

/** Resolves parameters as untyped callers send them. */
function resolve(params: object, defaults: SamplingParams = {}, limits = LIMITS) {
  return resolveSamplingParams(params as SamplingParams, limits, defaults);
}

function refusal(params: object, defaults?: SamplingParams, limits?: typeof LIMITS): InvalidRequestError {
  try {
    resolve(params, defaults, limits);
  } catch (error) {
    expect(error).toBeInstanceOf(InvalidRequestError);
    return error as InvalidRequestError;
  }
  throw new Error(`${Bun.inspect(params)} was accepted`);
}

const many = <T>(count: number, entry: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => entry(i));
const biases = (count: number) => Object.fromEntries(many(count, (i) => [i, 1]));

/** Values that each field refuses, and values at its bounds that it takes. */
const FIELDS: Readonly<
  Record<keyof SamplingParams, { readonly bad: readonly unknown[]; readonly good: readonly unknown[] }>
> = {
  n: { bad: [0, -1, 1.5, 129, 1e9, Number.NaN, "2", true, 2n], good: [1, 128] },
  temperature: { bad: [-0.1, 2.1, Number.NaN, Infinity, -Infinity, "1", 1n, []], good: [0, 0.005, 1, 2] },
  topP: { bad: [0, -0.1, 1.1, Number.NaN, "1"], good: [Number.MIN_VALUE, 0.5, 1] },
  topK: { bad: [-2, 0.5, 2 ** 31, Number.NaN, Infinity, "40"], good: [-1, 0, 1, 2 ** 31 - 1] },
  minP: { bad: [-0.1, 1.1, Number.NaN, "0"], good: [0, 0.5, 1] },
  presencePenalty: { bad: [-2.1, 2.1, Number.NaN, Infinity, "1"], good: [-2, 0, 2] },
  frequencyPenalty: { bad: [-2.1, 2.1, Number.NaN, -Infinity, "1"], good: [-2, 0, 2] },
  repetitionPenalty: { bad: [0, 0.0009, 1001, -1, Number.NaN, Infinity, "1"], good: [0.001, 1, 1000] },
  seed: {
    bad: [1.5, 2 ** 53, 2n ** 63n, -(2n ** 63n) - 1n, "1", true, Number.NaN],
    good: [0, -1, -1n, 7, null, 2n ** 63n - 1n, -(2n ** 63n)],
  },
  stop: {
    bad: ["", ["a", ""], many(17, String), ["x".repeat(1025)], [1], 1, {}, "y".repeat(1025)],
    good: ["a", [], many(16, String), "x".repeat(1024)],
  },
  stopTokenIds: { bad: [[-1], [100], [1.5], ["1"], many(513, () => 1), 5], good: [[], [0, 99]] },
  includeStopStrInOutput: { bad: [1, "true", 0], good: [true, false] },
  ignoreEos: { bad: [1, "yes"], good: [true, false] },
  minTokens: { bad: [-1, 0.5, Number.NaN, "1", 17], good: [0, 16] },
  maxTokens: { bad: [0, -1, 1.5, "10", Number.NaN, Infinity, 2 ** 53], good: [1, 1e9, null] },
  logprobs: { bad: [-1, 21, 0.5, "1", true], good: [0, 20, null] },
  promptLogprobs: { bad: [-1, 21, 0.5, "1"], good: [0, 20, null] },
  logitBias: {
    bad: [
      { 100: 1 },
      { "-1": 1 },
      { "1.5": 1 },
      { "05": 1 },
      { a: 1 },
      { 1: 101 },
      { 1: -101 },
      { 1: Number.NaN },
    ]
      .map((bias): unknown => bias)
      .concat([{ 1: "2" }, [1, 2], 5, "1", new Map([[1, 2]])]),
    good: [{}, { 0: -100, 99: 100 }, null],
  },
  allowedTokenIds: {
    bad: [[], [100], [-1], "1", [0.5], many(101, () => 1)],
    good: [[0], null, many(100, (i) => i)],
  },
  badWords: {
    bad: [[""], ["  "], [1], "word", many(257, String), ["x".repeat(257)]],
    good: [[], ["word"], null, many(256, String)],
  },
  detokenize: { bad: [1, "false"], good: [true, false] },
  skipSpecialTokens: { bad: [0, "true"], good: [true, false] },
  spacesBetweenSpecialTokens: { bad: [false, 1, "true"], good: [true] },
  outputKind: { bad: ["all", 0, true, ""], good: ["delta", "cumulative", "finalOnly"] },
  structuredOutputs: {
    bad: [
      ...[
        5,
        "json",
        [],
        {},
        { regex: 5 },
        { grammar: [] },
        { choice: "a" },
        { choice: [1] },
        { jsonObject: 1 },
      ],
      ...[
        { json: {}, regex: "a" },
        { xml: {} },
        { jsonObject: false },
        { regex: "a", disableAnyWhitespace: 1 },
      ],
    ],
    good: [null, { json: {} }, { json: "{}" }, { jsonObject: true }, { regex: "a" }, { choice: ["a"] }],
  },
  responseFormat: {
    bad: [
      ...[
        5,
        "json",
        [],
        {},
        { type: "xml" },
        { type: "json_schema" },
        { type: "json_schema", json_schema: [] },
      ],
      { type: "json_schema", json_schema: { name: "a b", schema: {} } },
      { type: "json_schema", json_schema: { name: "a", schema: {}, strict: "yes" } },
    ],
    good: [
      ...[null, { type: "text" }, { type: "json_object" }],
      { type: "json_schema", json_schema: { name: "a", strict: true, schema: {} } },
    ],
  },
};

describe("the range of each field", () => {
  for (const [field, { bad, good }] of Object.entries(FIELDS)) {
    test(`${field} refuses what is out of range`, () => {
      for (const value of bad) expect([value, refusal({ [field]: value }).param]).toEqual([value, field]);
    });

    test(`${field} takes its bounds, and undefined as left out`, () => {
      for (const value of good) resolve({ [field]: value });
      expect(resolve({ [field]: undefined })).toEqual(resolve({}));
    });
  }

  test("greedy sampling excuses no other field", () => {
    expect(refusal({ temperature: 0, topK: -5 }).param).toBe("topK");
    expect(refusal({ temperature: 0, minP: 7 }).param).toBe("minP");
    expect(refusal({ temperature: 0, topP: 0 }).param).toBe("topP");
  });

  test("an unknown field is refused by name, whatever its value", () => {
    expect(refusal({ top_p: 0.5 })).toMatchObject({ param: "top_p", code: "invalid_value" });
    expect(refusal({ bestOf: undefined }).param).toBe("bestOf");
    expect(refusal(JSON.parse('{"__proto__": 1}')).param).toBe("__proto__");
  });

  test("maxLogprobs -1 allows all of the vocabulary, and -1 to mean all", () => {
    const limits = { vocabSize: 100, maxLogprobs: -1 };
    expect(resolve({ logprobs: -1, promptLogprobs: 100 }, {}, limits)).toMatchObject({
      logprobs: 100,
      promptLogprobs: 100,
    });
    expect(refusal({ logprobs: 101 }, {}, limits).param).toBe("logprobs");
    expect(refusal({ logprobs: -2 }, {}, limits).param).toBe("logprobs");
  });

  test("a vocabulary smaller than maxLogprobs bounds the count that is computed", () => {
    expect(resolve({ logprobs: 20 }, {}, { vocabSize: 5, maxLogprobs: 20 }).logprobs).toBe(5);
  });
});

describe("rules between fields", () => {
  const cases: readonly (readonly [object, string])[] = [
    [{ temperature: 0, n: 2 }, "n"],
    [{ temperature: 1e-6, n: 2 }, "n"],
    [{ minTokens: 5, maxTokens: 4 }, "minTokens"],
    [{ minTokens: 17 }, "minTokens"],
    [{ stop: "x", detokenize: false }, "stop"],
  ];
  for (const [params, param] of cases)
    test(`${JSON.stringify(params)} is refused`, () => expect(refusal(params).param).toBe(param));

  test("minTokens has no ceiling when maxTokens is null", () => {
    expect(resolve({ minTokens: 1000, maxTokens: null })).toMatchObject({
      minTokens: 1000,
      maxTokens: undefined,
    });
  });

  test("an empty list of stop strings needs no text", () => {
    expect(resolve({ stop: [], detokenize: false }).stop).toEqual([]);
  });
});

describe("defaults", () => {
  test("without anything given", () => {
    expect(resolve({})).toEqual({
      ...{ n: 1, temperature: 1, topP: 1, topK: 0, minP: 0 },
      ...{ presencePenalty: 0, frequencyPenalty: 0, repetitionPenalty: 1, seed: undefined },
      ...{ stop: [], stopTokenIds: [], includeStopStrInOutput: false, ignoreEos: false },
      ...{
        minTokens: 0,
        maxTokens: 16,
        isMaxTokensDefault: true,
        logprobs: undefined,
        promptLogprobs: undefined,
      },
      ...{ logitBias: [], allowedTokenIds: undefined, badWords: [] },
      ...{ detokenize: true, skipSpecialTokens: true, outputKind: undefined },
    });
  });

  const MODEL = { temperature: 0.6, topP: 0.95, topK: 20, minP: 0.1, repetitionPenalty: 1.1 };

  test("the model's recommendation fills what the request leaves out, undefined included", () => {
    expect(resolve({ topP: 0.5, topK: undefined }, MODEL)).toMatchObject({ ...MODEL, topP: 0.5 });
  });

  test("a greedy request switches off the model's truncation", () => {
    const greedy = { temperature: 0, topP: 1, topK: 0, minP: 0, repetitionPenalty: 1.1 };
    expect(resolve({ temperature: 0 }, MODEL)).toMatchObject(greedy);
  });

  test("rules between fields hold for the model's values too", () => {
    expect(refusal({ n: 2 }, { temperature: 0 }).param).toBe("n");
  });
});

describe("normal forms", () => {
  test("temperatures: below 1e-5 is greedy, then at least 0.01", () => {
    const of = (temperature: number) => resolve({ temperature }).temperature;
    expect([0, 9e-6, 1e-5, 0.005, 0.01, 0.7].map(of)).toEqual([0, 0, 0.01, 0.01, 0.01, 0.7]);
  });

  test("seeds become unsigned 64-bit; -1 and null leave the choice to the engine", () => {
    const of = (seed: unknown) => resolve({ seed }).seed;
    expect(of(7)).toBe(7n);
    expect(of(-2)).toBe(2n ** 64n - 2n);
    expect(of(-(2n ** 63n))).toBe(2n ** 63n);
    for (const seed of [-1, -1n, null, undefined]) expect(of(seed)).toBeUndefined();
  });

  test("one stop string is a list, and token lists lose their duplicates", () => {
    const resolved = resolve({ stop: "end", stopTokenIds: [5, 5, 6], allowedTokenIds: [9, 9], topK: -1 });
    expect(resolved).toMatchObject({ stop: ["end"], stopTokenIds: [5, 6], allowedTokenIds: [9], topK: 0 });
  });

  test("logit biases become pairs", () => {
    expect(resolve({ logitBias: { 7: -1.5, 3: 100 } }).logitBias).toEqual([
      [3, 100],
      [7, -1.5],
    ]);
  });

  test("the number of logit biases is limited", () => {
    const limits = { vocabSize: 2000, maxLogprobs: 20 };
    expect(resolve({ logitBias: biases(1024) }, {}, limits).logitBias).toHaveLength(1024);
    expect(refusal({ logitBias: biases(1025) }, {}, limits).param).toBe("logitBias");
  });

  test("the result is frozen and the message shows a long value shortened", () => {
    expect(Object.isFrozen(resolve({}))).toBe(true);
    expect(refusal({ temperature: "x".repeat(1000) }).message.length).toBeLessThan(120);
  });
});
