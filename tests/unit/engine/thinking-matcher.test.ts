import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { type ThinkingLimit, ThinkingMatcher } from "../../../src/engine/thinking-matcher.ts";
import type { TokenMatcher } from "../../../src/engine/token-matcher.ts";
import { Outcomes } from "../../simulation/outcomes.ts";
import { add, drain, makeEngine, makeRequest, range } from "./helpers.ts";

setDefaultTimeout(300_000);

const FREE = Uint32Array.of(2 ** 32 - 1);
const CLOSE = 9;
const LIMIT: ThinkingLimit = { budget: 2, open: [4, 5], close: CLOSE, isInside: false };

function matcher(limit: Partial<ThinkingLimit> = {}, other?: TokenMatcher): ThinkingMatcher {
  return new ThinkingMatcher({ ...LIMIT, ...limit }, other, FREE);
}

/** The masks after each of the tokens. */
function masks(tokens: readonly number[], limit: Partial<ThinkingLimit> = {}, other?: TokenMatcher) {
  const limited = matcher(limit, other);
  const seen = [limited.mask[0]];
  for (const token of tokens) {
    limited.accept(token);
    seen.push(limited.mask[0]);
  }
  return seen;
}

const ANY = 2 ** 32 - 1;
const END = 1 << CLOSE;

describe("a budget of thoughts", () => {
  test("counts from the tokens that begin them, and leaves nothing but their end", () => {
    expect(masks([5, 4, 4, 5, 1, 1, CLOSE, 1, 1, 1])).toEqual([
      ...[ANY, ANY, ANY, ANY, ANY, ANY, END, ANY, ANY, ANY, ANY],
    ]);
  });

  test("counts from the first token where the turn begins with thoughts", () => {
    expect(masks([1, 1], { isInside: true })).toEqual([ANY, ANY, END]);
    expect(masks([], { isInside: true, budget: 0 })).toEqual([END]);
  });

  test("is the turn's, however often it thinks", () => {
    expect(masks([4, 5, 1, CLOSE, 4, 5, 1])).toEqual([ANY, ANY, ANY, ANY, ANY, ANY, ANY, END]);
  });

  test("leaves to a grammar what it allows, and cannot end what that does not", () => {
    const other = (mask: number): TokenMatcher => ({
      ...{ isPending: true, isSlow: false, isComplete: true, error: undefined },
      ...{ mask: Uint32Array.of(mask), maskVersion: 7 },
      accept: () => {},
      dispose: () => {},
    });
    expect(masks([1, 1], { isInside: true }, other(END | 2))).toEqual([END | 2, END | 2, END]);
    expect(masks([1, 1], { isInside: true }, other(2))).toEqual([2, 2, 2]);
    expect(matcher({}, other(2))).toMatchObject({
      maskVersion: 7,
      isPending: true,
      isSlow: false,
      isComplete: true,
    });
  });
});

test("a request with a budget and no grammar needs nobody to follow one, and its rows have masks", () => {
  const { engine, runner } = makeEngine({ overlap: true });
  const thinking = { budget: 0, open: [1], close: 3, isInside: true };
  add(engine, makeRequest(range(0, 5), { maxTokens: 2 }, { thinking }));
  const outcomes = drain(engine, new Outcomes());
  expect(outcomes.finished.size).toBe(1);
  expect(runner.masks).toHaveLength(2);
  expect(runner.masks[0]![0]!.mask[0]).toBe(1 << 3);
  expect(runner.launched[0]!.joins[0]!.sampling.masked).toBe(true);
  expect(runner.violations).toEqual([]);
});
