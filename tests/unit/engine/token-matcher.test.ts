import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { GrammarTooComplexError } from "../../../src/base/errors.ts";
import type { Engine } from "../../../src/engine/engine.ts";
import type { MatcherSource, TokenMatcher } from "../../../src/engine/token-matcher.ts";
import { reference } from "../../simulation/oracle.ts";
import { Outcomes } from "../../simulation/outcomes.ts";
import { add, drain, makeEngine, makeRequest, range } from "./helpers.ts";

setDefaultTimeout(300_000);

/** Answers when it is told to. */
class FakeMatcher implements TokenMatcher {
  isPending = true;
  isSlow = true;
  isComplete = false;
  error: Error | undefined;
  readonly mask = Uint32Array.of(2 ** 32 - 1);
  readonly maskVersion = 3;
  readonly accepted: number[] = [];
  disposals = 0;

  constructor(readonly init: Parameters<MatcherSource["open"]>[0]) {}

  accept(token: number): void {
    expect(this.isPending).toBe(false);
    this.accepted.push(token);
    this.isPending = true;
  }

  dispose(): void {
    this.disposals++;
  }
}

class FakeMatchers implements MatcherSource {
  readonly all: FakeMatcher[] = [];

  open(init: FakeMatcher["init"]): FakeMatcher {
    const matcher = new FakeMatcher(init);
    this.all.push(matcher);
    return matcher;
  }

  flush(): void {}

  settle(): void {}

  changed(): Promise<void> {
    return Promise.resolve();
  }

  answer(): void {
    for (const matcher of this.all) matcher.isPending = false;
  }
}

const structured = { grammar: "root ::= root" };

/** Steps until nothing is left to do, and answers all matchers whenever the engine waits for them. */
function drainAnswering(engine: Engine, matchers: FakeMatchers, outcomes = new Outcomes()): Outcomes {
  while (engine.hasUnfinished) {
    outcomes.take(engine.step());
    if (engine.isBlocked) matchers.answer();
  }
  return outcomes;
}

const tokensOf = (outcomes: Outcomes, id: string) =>
  outcomes.deltas.filter(({ requestId }) => requestId === id).flatMap(({ tokenIds }) => tokenIds);

test("a row with a grammar waits for its mask, those without never do", () => {
  const matchers = new FakeMatchers();
  const { engine, runner } = makeEngine({ matchers });
  const waiting = makeRequest(range(0, 5), {}, structured);
  const plain = makeRequest(range(5, 9));
  add(engine, waiting);
  add(engine, plain);
  const outcomes = new Outcomes();
  while (!engine.isBlocked) outcomes.take(engine.step());
  expect(tokensOf(outcomes, plain.id)).toEqual([...reference(plain, 0, 64).tokens]);
  expect(tokensOf(outcomes, waiting.id)).toEqual([]);
  expect(outcomes.finished.has(plain.id)).toBe(true);
  drainAnswering(engine, matchers, outcomes);
  expect(tokensOf(outcomes, waiting.id)).toEqual([...reference(waiting, 0, 64).tokens]);
  expect(matchers.all[0]!.accepted).toEqual([...reference(waiting, 0, 64).tokens.slice(0, -1)]);
  expect(runner.violations).toEqual([]);
});

test("every row that samples under a grammar gets its mask, and its slot says so", () => {
  const matchers = new FakeMatchers();
  const { engine, runner } = makeEngine({ matchers, overlap: true, maxNumBatchedTokens: 4 });
  add(engine, makeRequest(range(0, 10), { allowedTokenIds: [1] }, structured));
  drainAnswering(engine, matchers);
  const rows = runner.launched.flatMap((batch) => batch.rows);
  expect(rows.map(({ sample, masked }) => [sample, masked === true])).toEqual([
    ...[
      [false, false],
      [false, false],
    ],
    ...Array(4).fill([true, true]),
  ]);
  expect(runner.masks).toEqual(Array(4).fill([{ row: 0, mask: matchers.all[0]!.mask, version: 3 }]));
  expect(runner.violations).toEqual([]);
  const [join] = runner.launched.flatMap((batch) => batch.joins);
  expect(join!.sampling).toMatchObject({ masked: true, allowedTokenIds: undefined });
  expect(matchers.all[0]!.init.allowedTokenIds).toEqual([1]);
});

describe("rows whose masks come soon", () => {
  /** Answers when a step waits, and fails a matcher of the test's choice then. */
  class QuickMatchers extends FakeMatchers {
    override settle(): void {
      this.answer();
      for (const matcher of this.all) matcher.isSlow = false;
    }
  }

  function start(overlap: boolean) {
    const matchers = new QuickMatchers();
    const { engine, runner } = makeEngine({ matchers, overlap });
    const [masked, plain] = [makeRequest(range(0, 5), {}, structured), makeRequest(range(5, 9))];
    for (const request of [masked, plain]) add(engine, request);
    matchers.answer();
    return { matchers, engine, runner, masked, plain };
  }

  test.each([false, true])("have a place in every step, overlap %p", (overlap) => {
    const { matchers, engine, runner, masked, plain } = start(overlap);
    const outcomes = drainAnswering(engine, matchers);
    for (const request of [masked, plain])
      expect(tokensOf(outcomes, request.id)).toEqual([...reference(request, 0, 64).tokens]);
    expect(matchers.all[0]!.accepted).toEqual([...reference(masked, 0, 64).tokens.slice(0, -1)]);
    expect(runner.launched.map(({ rows }) => rows.length)).toEqual([2, 2, 2, 2]);
    expect(runner.violations).toEqual([]);
  });

  test("are computed before the tokens of the step ahead are known, and drawn after", () => {
    const { matchers, engine, runner } = start(true);
    const [launched, drawn]: number[][] = [[], []];
    const { accept } = FakeMatcher.prototype;
    for (const matcher of matchers.all)
      matcher.accept = (token) => {
        launched!.push(runner.launched.length);
        drawn!.push(runner.masks.length);
        accept.call(matcher, token);
      };
    drainAnswering(engine, matchers);
    expect(launched).toEqual([2, 3, 4]);
    expect(drawn).toEqual([1, 2, 3]);
  });

  test.each([false, true])(
    "are held when they come late after all, and go on with the same tokens, overlap %p",
    (overlap) => {
      const { matchers, engine, runner, masked, plain } = start(overlap);
      const [matcher] = matchers.all;
      const late = [1, 3];
      matchers.settle = () => {
        if (late.includes(matcher!.accepted.length) && matcher!.isPending) matcher!.isSlow = true;
        else QuickMatchers.prototype.settle.call(matchers);
      };
      const outcomes = new Outcomes();
      while (engine.hasUnfinished) {
        outcomes.take(engine.step());
        engine.checkIntegrity();
        if (!engine.isBlocked) continue;
        expect(late.shift()).toBe(matcher!.accepted.length);
        matchers.answer();
      }
      for (const request of [masked, plain])
        expect(tokensOf(outcomes, request.id)).toEqual([...reference(request, 0, 64).tokens]);
      expect(matcher!.accepted).toEqual([...reference(masked, 0, 64).tokens.slice(0, -1)]);
      expect(outcomes.finished.get(masked.id)!.finishReasons).toEqual(["length"]);
      expect(late).toEqual([]);
      expect(runner.violations).toEqual([]);
    },
  );

  test("draw nothing for a matcher that fails while they are computed", () => {
    const { matchers, engine, runner, masked, plain } = start(true);
    const outcomes = new Outcomes();
    while (runner.masks.length < 2) outcomes.take(engine.step());
    matchers.all[0]!.error = new GrammarTooComplexError("structuredOutputs", "too slow");
    drainAnswering(engine, matchers, outcomes);
    expect(outcomes.finished.get(masked.id)!.finishReasons).toEqual(["error"]);
    expect(tokensOf(outcomes, plain.id)).toEqual([...reference(plain, 0, 64).tokens]);
    expect(runner.violations).toEqual([]);
  });

  test("end with a step that cannot draw, and nobody else does", () => {
    const matchers = new QuickMatchers();
    let launches = 0;
    const { engine, runner } = makeEngine(
      { matchers, overlap: true },
      { fault: () => (++launches === 2 ? "draw" : undefined) },
    );
    const masked = makeRequest(range(0, 5), {}, structured);
    add(engine, masked);
    matchers.answer();
    const outcomes = drainAnswering(engine, matchers);
    expect(outcomes.finished.get(masked.id)!.finishReasons).toEqual(["error"]);
    const next = makeRequest(range(5, 9));
    add(engine, next);
    expect(tokensOf(drain(engine, outcomes), next.id)).toEqual([...reference(next, 0, 64).tokens]);
    expect(runner.violations).toEqual([]);
  });
});

test("tokens are not guessed ahead of a mask", () => {
  const matchers = new FakeMatchers();
  const { engine, runner } = makeEngine({ matchers }, { maxDrafts: 2, guesses: () => true });
  add(engine, makeRequest(range(0, 5), { maxTokens: 8 }, structured));
  drainAnswering(engine, matchers);
  expect(runner.launched.flatMap(({ rows }) => rows.map(({ drafts }) => drafts ?? 0))).toEqual(
    Array(8).fill(0),
  );
});

test("completions have matchers of their own, all of which end with them", () => {
  const matchers = new FakeMatchers();
  const { engine } = makeEngine({ matchers });
  const request = makeRequest(range(0, 5), { n: 3, ignoreEos: false, stopTokenIds: [7, 1] }, structured);
  add(engine, request);
  const { finished } = drainAnswering(engine, matchers);
  expect(finished.get(request.id)!.finishReasons).toHaveLength(3);
  expect(matchers.all.map(({ disposals }) => disposals)).toEqual([1, 1, 1]);
  expect(new Set(matchers.all[0]!.init.stopTokenIds).size).toBe(matchers.all[0]!.init.stopTokenIds.length);
});

test("a preempted sequence keeps its matcher, which is not told anything twice", () => {
  const matchers = new FakeMatchers();
  const { engine, runner } = makeEngine({ matchers }, { numBlocks: 6 });
  const requests = [0, 1].map((i) => makeRequest(range(4 * i, 4 * i + 8), { maxTokens: 8 }, structured));
  for (const request of requests) add(engine, request);
  const outcomes = drainAnswering(engine, matchers);
  expect(engine.stats().preemptions).toBeGreaterThan(0);
  for (const [i, request] of requests.entries()) {
    const tokens = [...reference(request, 0, 64).tokens];
    expect(tokensOf(outcomes, request.id)).toEqual(tokens);
    expect(matchers.all[i]!.accepted).toEqual(tokens.slice(0, -1));
  }
  expect(runner.violations).toEqual([]);
});

describe("the end", () => {
  test("a complete text ends without a stop token", () => {
    const matchers = new FakeMatchers();
    const { engine } = makeEngine({ matchers });
    const request = makeRequest(range(0, 5), {}, structured);
    add(engine, request);
    const outcomes = new Outcomes();
    while (matchers.all[0]!.accepted.length < 2) {
      outcomes.take(engine.step());
      if (engine.isBlocked) matchers.answer();
    }
    matchers.answer();
    matchers.all[0]!.isComplete = true;
    const { finished } = drain(engine, outcomes);
    expect(finished.get(request.id)).toMatchObject({ finishReasons: ["stop"], completionTokens: [2] });
  });

  test("a matcher that fails ends its completion alone, with the reason", () => {
    const matchers = new FakeMatchers();
    const { engine } = makeEngine({ matchers });
    const [bad, good] = [makeRequest(range(0, 5), {}, structured), makeRequest(range(0, 5), {}, structured)];
    add(engine, bad);
    add(engine, good);
    matchers.all[0]!.error = new GrammarTooComplexError("structuredOutputs", "too slow");
    const { deltas, finished } = drainAnswering(engine, matchers);
    expect(deltas.find(({ requestId }) => requestId === bad.id)!.error).toBe(matchers.all[0]!.error);
    expect(finished.get(good.id)!.finishReasons).toEqual(["length"]);
    expect(matchers.all.map(({ disposals }) => disposals)).toEqual([1, 1]);
  });

  test("an abort while the mask is awaited, and the death of the engine, dispose of matchers", () => {
    const matchers = new FakeMatchers();
    const { engine } = makeEngine({ matchers });
    const [aborted, left] = [
      makeRequest(range(0, 5), {}, structured),
      makeRequest(range(0, 5), {}, structured),
    ];
    add(engine, aborted);
    add(engine, left);
    engine.step();
    engine.abort(aborted.id);
    expect(matchers.all.map(({ disposals }) => disposals)).toEqual([1, 0]);
    engine.dispose();
    expect(matchers.all.map(({ disposals }) => disposals)).toEqual([1, 1]);
  });
});
