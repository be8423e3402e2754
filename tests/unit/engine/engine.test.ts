import { expect, setDefaultTimeout, test } from "bun:test";
import { ContextLengthError, InvariantError } from "../../../src/base/errors.ts";
import { checkRequest, type RequestDraft } from "../../../src/engine/request.ts";
import { digests, logprobOf, makeSeed, reference, ToyTextStream, VOCAB } from "../../simulation/oracle.ts";
import { Outcomes } from "../../simulation/outcomes.ts";
import { add, drain, makeEngine, makeRequest, range, sha256 } from "./helpers.ts";

setDefaultTimeout(300_000);

const tokensOf = (request: RequestDraft, index = 0) => reference(request, index, 64).tokens;

test("a request comes out as the reference has it, step by step and as a whole", () => {
  const { engine } = makeEngine();
  const request = makeRequest(range(0, 9), {}, { arrivalTime: -1 });
  add(engine, request);
  const { deltas, prompts, finished } = drain(engine);
  expect(deltas.map(({ tokenIds }) => tokenIds)).toEqual(tokensOf(request).map((token) => [token]));
  expect(deltas.map(({ finishReason }) => finishReason)).toEqual([null, null, null, "length"]);
  expect(deltas.at(-1)).toMatchObject({ requestId: request.id, index: 0, text: "", stopReason: null });
  expect(prompts.get(request.id)).toMatchObject({ numCachedTokens: 0 });
  const summary = finished.get(request.id)!;
  expect(summary).toMatchObject({
    ...{ finishReasons: ["length"], promptTokens: 9, cachedTokens: 0, generationTokens: 4 },
    ...{ completionTokens: [4], maxTokens: 4, n: 1 },
  });
  const { arrivalTime, firstScheduledTime, firstTokenTime, finishedTime } = summary.metrics;
  expect(arrivalTime < firstScheduledTime! && firstScheduledTime! < firstTokenTime!).toBe(true);
  expect(firstTokenTime!).toBeLessThan(finishedTime!);
  expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0, steps: 4, generationTokens: 4 });
});

test("with batchInvariant a prompt's only token is no decode row; what is generated is", () => {
  const { engine, runner } = makeEngine({ batchInvariant: true });
  add(engine, makeRequest(range(0, 1)));
  drain(engine);
  expect(runner.launched.map(({ decodeRows }) => decodeRows)).toEqual([0, 1, 1, 1]);
});

test("a prompt's blocks are hashed while the device computes them, not when somebody waits for the result", () => {
  let digests = 0;
  const init = () => {
    digests++;
    return sha256.init();
  };
  const { engine, runner } = makeEngine({ hasher: { ...sha256, init } });
  const hashed: number[] = [];
  const { collect } = runner;
  runner.collect = () => {
    hashed.push(digests);
    return collect.call(runner);
  };
  add(engine, makeRequest(range(0, 20), { maxTokens: 3 }));
  drain(engine);
  // Five blocks and the salt; the sixth is never full.
  expect(hashed).toEqual([6, 6, 6]);
  expect(digests).toBe(6);
});

test("a step tells of a request when it is begun, when it has its first delta, and when it ends", () => {
  for (const overlap of [false, true]) {
    const { engine } = makeEngine({ overlap, maxNumBatchedTokens: 4 });
    add(engine, makeRequest(range(0, 6), { maxTokens: 2, promptLogprobs: 0 }, { id: "a" }));
    const told = [];
    while (engine.hasUnfinished) {
      const { deltas, prompts, finished, numBatchedTokens } = engine.step();
      const known = prompts.map(({ promptLogprobs, metrics }) => [
        promptLogprobs?.length,
        metrics.firstScheduledTime !== undefined,
        metrics.firstTokenTime !== undefined,
      ]);
      told.push([numBatchedTokens, known, deltas.length, finished.length]);
    }
    const [begun, started] = [[[undefined, true, false]], [[6, true, true]]];
    const collecting = [
      [started, 1, 0],
      [[], 1, 1],
    ];
    expect(told).toEqual(
      overlap
        ? [
            [4, begun, 0, 0],
            [2, [], 0, 0],
            [1, ...collecting[0]!],
            [0, ...collecting[1]!],
          ]
        : [
            [4, begun, 0, 0],
            [2, ...collecting[0]!],
            [1, ...collecting[1]!],
          ],
    );
  }
});

test("with overlap a step is launched before the one before is collected", () => {
  const { engine, runner } = makeEngine({ overlap: true });
  add(engine, makeRequest(range(0, 3)));
  const outcomes = new Outcomes();
  for (const steps of [1, 2]) {
    outcomes.take(engine.step());
    expect([runner.launched.length, outcomes.deltas.length]).toEqual([steps, steps - 1]);
  }
  drain(engine, outcomes);
  expect(runner.launched).toHaveLength(4);
});

test("a runner that takes one step at a time is not overlapped", () => {
  const { engine } = makeEngine({ overlap: true }, { maxInFlight: 1 });
  add(engine, makeRequest(range(0, 3)));
  expect(engine.step().deltas).toHaveLength(1);
});

test("n completions have their own seeds and compute the prompt once", () => {
  const { engine, runner } = makeEngine();
  const request = makeRequest(range(0, 13), { n: 3 });
  add(engine, request);
  const outcomes = drain(engine);
  const tokens = outcomes.completions(request.id).map(({ tokenIds }) => tokenIds);
  expect(tokens).toEqual([0, 1, 2].map((i) => tokensOf(request, i)));
  expect(new Set(tokens.map(String)).size).toBe(3);
  const summary = outcomes.finished.get(request.id)!;
  expect(summary).toMatchObject({ cachedTokens: 0, completionTokens: [4, 4, 4] });
  // The first of all, though the other completions begin a step later.
  const { firstTokenTime } = outcomes.prompts.get(request.id)!.metrics;
  expect(summary.metrics.firstTokenTime).toBe(firstTokenTime!);
  expect(engine.stats()).toMatchObject({ prefixQueries: 39, prefixHits: 24 });
  const computed = runner.launched.reduce((sum, { numTokens }) => sum + numTokens, 0);
  expect(computed).toBe(13 + 1 + 1 + 3 * 3);
});

test("a later request with the same prefix reads it from the cache, one with another salt does not", () => {
  const { engine } = makeEngine();
  const requests = [{}, {}, { cacheSalt: "b" }].map((fields) => makeRequest(range(0, 10), {}, fields));
  const cached = requests.map((request) => {
    add(engine, request);
    return drain(engine).finished.get(request.id)!.cachedTokens;
  });
  expect(cached).toEqual([0, 8, 0]);
  expect(engine.resetPrefixCache()).toBe(true);
  expect(engine.stats().cachedBlocks).toBe(0);
});

test("the cache can be emptied when all have ended, though a step that was launched before is on its way", () => {
  const { engine, runner } = makeEngine({ overlap: true });
  const request = makeRequest(range(0, 10), { maxTokens: 9 });
  const [first] = tokensOf(request);
  add(engine, { ...request, sampling: { ...request.sampling, stopTokenIds: [first!] } });
  const outcomes = new Outcomes();
  while (outcomes.finished.size === 0) {
    expect(engine.resetPrefixCache()).toBe(runner.launched.length === 0);
    outcomes.take(engine.step());
  }
  expect(runner.launched).toHaveLength(2);
  expect(engine.stats()).toMatchObject({ running: 0, waiting: 0 });
  expect(engine.resetPrefixCache()).toBe(true);
  expect(engine.stats()).toMatchObject({ kvUsage: 0, cachedBlocks: 0 });
  expect(engine.hasUnfinished).toBe(false);
});

test("a preempted sequence publishes anew what it computes anew", () => {
  const { engine } = makeEngine({}, { numBlocks: 7 });
  // The first grows into every block of the pool, and out of the cache what the second had published.
  add(engine, makeRequest(range(0, 12), { maxTokens: 16 }));
  add(engine, makeRequest(range(5, 12)));
  drain(engine);
  expect(engine.stats().preemptions).toBe(1);
  const later = makeRequest(range(5, 12));
  add(engine, later);
  expect(drain(engine).finished.get(later.id)!.cachedTokens).toBe(8);
});

test("abort ends a request in any state with one final delta, and twice is once", () => {
  for (const steps of [0, 1, 2, 3, 4]) {
    const { engine } = makeEngine({ overlap: true, maxNumBatchedTokens: 8 });
    const request = makeRequest(range(0, 12), { n: 2, maxTokens: 3 });
    add(engine, request);
    const outcomes = new Outcomes();
    for (let i = 0; i < steps; i++) outcomes.take(engine.step());
    engine.abort(request.id);
    engine.abort(request.id);
    engine.checkIntegrity();
    const ends = drain(engine, outcomes).deltas.filter(({ finishReason }) => finishReason !== null);
    expect(ends.map(({ index, finishReason }) => [index, finishReason])).toEqual([
      [0, "abort"],
      [1, "abort"],
    ]);
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
  }
});

test("aborting a finished or unknown request does nothing, and a finished one's id is free", () => {
  const { engine } = makeEngine();
  const request = makeRequest([1]);
  for (let i = 0; i < 2; i++) {
    add(engine, request);
    expect(drain(engine).completion(request.id).finishReason).toBe("length");
    engine.abort(request.id);
    expect(engine.hasUnfinished).toBe(false);
  }
});

test("a running request's id is taken", () => {
  const { engine } = makeEngine();
  const request = makeRequest([1]);
  add(engine, request);
  expect(() => add(engine, request)).toThrow(InvariantError);
});

test("what cannot be served is refused with the parameter at fault, and leaves no trace", () => {
  const refused: [string, string, RequestDraft][] = [
    ["prompt", "empty_prompt", makeRequest([])],
    ["prompt", "invalid_token_id", makeRequest([1, -1])],
    ["prompt", "invalid_token_id", makeRequest([VOCAB])],
    ["prompt", "invalid_token_id", makeRequest([1.5])],
    ["badWords", "invalid_token_id", makeRequest([1], {}, { badWordTokens: [[1], [VOCAB]] })],
    ["badWords", "invalid_value", makeRequest([1], {}, { badWordTokens: [[]] })],
    ["cacheSalt", "invalid_value", makeRequest([1], {}, { cacheSalt: "" })],
    ["cacheSalt", "invalid_value", makeRequest([1], {}, { cacheSalt: "é".repeat(129) })],
    ["n", "invalid_value", makeRequest([1], { n: 2 }, { logits: true })],
    ["minTokens", "invalid_value", makeRequest(range(0, 60), { maxTokens: undefined, minTokens: 5 })],
    [
      "allowedTokenIds",
      "no_token_allowed",
      makeRequest([1], { minTokens: 1, stopTokenIds: [3], allowedTokenIds: [3] }),
    ],
    [
      "allowedTokenIds",
      "no_token_allowed",
      makeRequest([1], { allowedTokenIds: [3, 4] }, { badWordTokens: [[3], [4], [3, 5]] }),
    ],
    [
      "allowedTokenIds",
      "no_token_allowed",
      makeRequest(
        [1],
        { minTokens: 1, stopTokenIds: [3], allowedTokenIds: [3, 4] },
        { badWordTokens: [[4]] },
      ),
    ],
    [
      "badWords",
      "no_token_allowed",
      makeRequest([1], {}, { badWordTokens: range(0, VOCAB).map((id) => [id]) }),
    ],
  ];
  const { engine } = makeEngine();
  for (const [param, code, request] of refused)
    expect(() => add(engine, request)).toThrow(expect.objectContaining({ param, code }));
  expect(engine.stats().waiting).toBe(0);
  expect(engine.hasUnfinished).toBe(false);
});

test("requests that can never fit the context or the pool are refused, the rest clamped", () => {
  const inContext = makeEngine().engine;
  const inPool = makeEngine({}, { numBlocks: 10 }).engine;
  for (const [engine, limit] of [
    [inContext, 64],
    [inPool, 40],
  ] as const) {
    const queue = (promptLength: number, maxTokens?: number) => {
      const request = makeRequest(range(0, promptLength), { maxTokens, n: 2 });
      add(engine, request);
      return request;
    };
    expect(() => queue(limit)).toThrow(ContextLengthError);
    expect(() => queue(limit - 3, 4)).toThrow(
      expect.objectContaining({ param: "maxTokens", requested: limit + 1, limit }),
    );
    const exact = queue(limit - 3, 3);
    const clamped = queue(limit - 5);
    const outcomes = drain(engine);
    expect(outcomes.completion(exact.id, 1).tokenIds).toEqual(tokensOf(exact, 1));
    expect(outcomes.finished.get(clamped.id)!.completionTokens).toEqual([5, 5]);
  }
});

test("an end-of-sequence or stop id ends the text without being part of it", () => {
  const { engine } = makeEngine({ createTextStream: () => new ToyTextStream() });
  const free = makeRequest(range(2, 5), { maxTokens: 12 });
  const tokens = tokensOf(free);
  const stopId = tokens[3]!;
  const sampling = { ...free.sampling, stopTokenIds: [stopId] };
  const stopped = makeRequest(range(2, 5), sampling);
  add(engine, stopped);
  const output = drain(engine).completion(stopped.id);
  const at = tokens.indexOf(stopId) + 1;
  expect(output).toMatchObject({ finishReason: "stop", stopReason: stopId, tokenIds: tokens.slice(0, at) });
  expect(output.text).toBe(reference(stopped, 0, 64).text);
});

test("what a step draws after the end of a completion is not part of it", () => {
  const drafting = { maxDrafts: 3, guesses: () => true };
  for (const overlap of [false, true]) {
    const { engine, runner } = makeEngine({ overlap }, drafting);
    const free = makeRequest(range(2, 5), { maxTokens: 12, seed: makeSeed(0, 0) });
    const tokens = tokensOf(free);
    // The first token comes alone, then four at a time: one that none before equals, inside such a run.
    const at = [2, 3, 6, 7].find((i) => tokens.indexOf(tokens[i]!) === i)!;
    const sampling = { ...free.sampling, stopTokenIds: [tokens[at]!], logprobs: 1 };
    const [stopped, full] = [makeRequest(range(2, 5), sampling), makeRequest(range(2, 5), { maxTokens: 7 })];
    for (const request of [stopped, full]) add(engine, request);
    const outcomes = drain(engine);
    expect(outcomes.completion(stopped.id)).toMatchObject({
      ...{ finishReason: "stop", stopReason: tokens[at], tokenIds: tokens.slice(0, at + 1) },
      logprobs: { length: at + 1 },
    });
    expect(outcomes.completion(full.id)).toMatchObject({ finishReason: "length", tokenIds: tokensOf(full) });
    const runs = outcomes.deltas.filter(({ requestId }) => requestId === full.id);
    expect(runs.map(({ tokenIds }) => tokenIds.length)).toEqual([1, 4, 2]);
    expect(engine.stats().generationTokens).toBe(at + 1 + 7);
    expect(runner.numAccepted).toBeGreaterThan(0);
  }
});

test("log-probabilities come for output and prompt, the token itself first", () => {
  const { engine } = makeEngine({ maxNumBatchedTokens: 4, decodeToken: (id) => `<${id}>` });
  const request = makeRequest(range(0, 9), { logprobs: 2, promptLogprobs: 1 });
  add(engine, request);
  const outcomes = drain(engine);
  const { promptLogprobs } = outcomes.prompts.get(request.id)!;
  const { tokens, logprobs } = reference(request, 0, 64);
  const positions = outcomes.completion(request.id).logprobs;
  const entries = positions.map((position) => [...position][0]!);
  expect(entries.map(([id, { logprob }]) => [id, logprob])).toEqual(
    tokens.map((id, i) => [id, logprobs[i]!]),
  );
  expect(entries[0]![1].decodedToken).toBe(`<${tokens[0]}>`);
  expect(positions[0]!.size).toBe(2);
  expect(promptLogprobs!.map((position) => position && [...position.keys()][0])).toEqual([
    null,
    ...range(1, 8),
  ]);
});

test("a request for prompt log-probabilities or logits computes the whole prompt", () => {
  const { engine } = makeEngine();
  const prompt = range(0, 10);
  const logits = makeRequest(prompt, {}, { logits: true });
  const outcomes = new Outcomes();
  for (const request of [makeRequest(prompt), makeRequest(prompt, { promptLogprobs: 0 }), logits]) {
    add(engine, request);
    expect(drain(engine, outcomes).finished.get(request.id)!.cachedTokens).toBe(0);
  }
  expect(outcomes.completion(logits.id)).toMatchObject({ tokenIds: [], finishReason: "length" });
  const rows = digests(prompt, 0).map((digest) =>
    Array.from({ length: VOCAB }, (_, v) => logprobOf(digest, v)),
  );
  expect([...outcomes.prompts.get(logits.id)!.logits!]).toEqual(rows.flat());
});

test("more logits than one array holds are refused", () => {
  const limits = { maxModelLen: 4096, poolTokens: 4096, vocabSize: 2 ** 20, eosTokenIds: [] };
  const request = (length: number) => makeRequest(range(0, length), {}, { logits: true });
  expect(checkRequest(request(1024), limits).maxTokens).toBe(0);
  expect(() => checkRequest(request(1025), limits)).toThrow(ContextLengthError);
});

test("dispose ends the engine and its runner, twice is once", () => {
  const { engine, runner } = makeEngine();
  add(engine, makeRequest([1]));
  engine.step();
  engine.dispose();
  engine.dispose();
  expect(runner.disposed).toBe(true);
  expect(engine.hasUnfinished).toBe(false);
  expect(() => engine.step()).toThrow("disposed");
});

test("seeds: the request's own, else the next one, plus the completion's index; bans end after minTokens", () => {
  const { engine, runner } = makeEngine({ nextSeed: () => 2n ** 64n - 1n });
  const sampling = { n: 2, seed: undefined, minTokens: 3, stopTokenIds: [4], ignoreEos: false };
  add(engine, makeRequest([1], sampling, { badWordTokens: [[2, 3]] }));
  engine.step();
  const joined = runner.launched[0]!.joins.map((join) => join.sampling);
  expect(joined.map(({ seed }) => seed)).toEqual([2n ** 64n - 1n, 0n]);
  expect(joined[0]).toMatchObject({ bannedTokens: [0, 4], bannedUntil: 4, badWords: [[2, 3]] });
});
