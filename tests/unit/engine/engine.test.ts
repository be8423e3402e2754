import { expect, test } from "bun:test";
import {
  ContextLengthError,
  EngineDeadError,
  InvalidRequestError,
  InvariantError,
  RequestFailedError,
} from "../../../src/base/errors.ts";
import { checkRequest, type EngineRequest } from "../../../src/engine/request.ts";
import type { Fault } from "../../simulation/fake-runner.ts";
import { digests, logprobOf, makeSeed, reference, ToyTextStream, VOCAB } from "../../simulation/oracle.ts";
import { drain, makeEngine, makeRequest, range } from "./helpers.ts";

const tokensOf = (request: EngineRequest, index = 0) => reference(request, index, 64).tokens;

test("a request comes out as the reference has it, step by step and as a whole", () => {
  const { engine } = makeEngine();
  const request = makeRequest(range(0, 9), {}, { prompt: "once", arrivalTime: -1 });
  engine.add(request);
  const deltas = drain(engine);
  expect(deltas.map(({ tokenIds }) => tokenIds)).toEqual(tokensOf(request).map((token) => [token]));
  expect(deltas.map(({ finishReason }) => finishReason)).toEqual([null, null, null, "length"]);
  const result = engine.result(request.id);
  expect(result).toMatchObject({ requestId: request.id, prompt: "once", finished: true, numCachedTokens: 0 });
  expect(result.outputs[0]).toMatchObject({ tokenIds: tokensOf(request), text: "", stopReason: null });
  const { arrivalTime, firstScheduledTime, firstTokenTime, finishedTime } = result.metrics;
  expect(arrivalTime < firstScheduledTime! && firstScheduledTime! < firstTokenTime!).toBe(true);
  expect(firstTokenTime!).toBeLessThan(finishedTime!);
  expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0, steps: 4, generationTokens: 4 });
});

test("with overlap a step is launched before the one before is collected", () => {
  const { engine, runner } = makeEngine({ overlap: true });
  engine.add(makeRequest(range(0, 3)));
  expect(engine.step()).toEqual([]);
  expect(runner.launched).toHaveLength(1);
  expect(engine.numBatchedTokens).toBe(3);
  expect(engine.step()).toHaveLength(1);
  expect(runner.launched).toHaveLength(2);
  expect(engine.numBatchedTokens).toBe(1);
  drain(engine);
  expect(runner.launched).toHaveLength(4);
  expect(engine.numBatchedTokens).toBe(0);
});

test("a runner that takes one step at a time is not overlapped", () => {
  const { engine } = makeEngine({ overlap: true }, { maxInFlight: 1 });
  engine.add(makeRequest(range(0, 3)));
  expect(engine.step()).toHaveLength(1);
});

test("a running request can be looked at", () => {
  const { engine } = makeEngine();
  const request = makeRequest(range(0, 3));
  engine.add(request);
  engine.step();
  const result = engine.result(request.id);
  engine.step();
  expect(result.finished).toBe(false);
  expect(result.outputs[0]!.tokenIds).toEqual(tokensOf(request).slice(0, 1));
});

test("n completions have their own seeds and compute the prompt once", () => {
  const { engine, runner } = makeEngine();
  const request = makeRequest(range(0, 13), { n: 3 });
  engine.add(request);
  drain(engine);
  const { outputs, numCachedTokens } = engine.result(request.id);
  expect(outputs.map(({ tokenIds }) => tokenIds)).toEqual([0, 1, 2].map((i) => tokensOf(request, i)));
  expect(new Set(outputs.map(({ tokenIds }) => String(tokenIds))).size).toBe(3);
  expect(numCachedTokens).toBe(0);
  expect(engine.stats()).toMatchObject({ prefixQueries: 39, prefixHits: 24 });
  const computed = runner.launched.reduce((sum, { numTokens }) => sum + numTokens, 0);
  expect(computed).toBe(13 + 1 + 1 + 3 * 3);
});

test("a later request with the same prefix reads it from the cache, one with another salt does not", () => {
  const { engine } = makeEngine();
  const requests = [{}, {}, { cacheSalt: "b" }].map((fields) => makeRequest(range(0, 10), {}, fields));
  const cached = requests.map((request) => {
    engine.add(request);
    drain(engine);
    return engine.result(request.id).numCachedTokens;
  });
  expect(cached).toEqual([0, 8, 0]);
  expect(engine.resetPrefixCache()).toBe(true);
  expect(engine.stats().cachedBlocks).toBe(0);
});

test("abort ends a request in any state with one final delta, and twice is once", () => {
  for (const steps of [0, 1, 2, 3, 4]) {
    const { engine } = makeEngine({ overlap: true, maxNumBatchedTokens: 8 });
    const request = makeRequest(range(0, 12), { n: 2, maxTokens: 3 });
    engine.add(request);
    const deltas = Array.from({ length: steps }, () => engine.step()).flat();
    engine.abort(request.id);
    engine.abort(request.id);
    engine.checkIntegrity();
    deltas.push(...drain(engine));
    const ends = deltas.filter(({ finishReason }) => finishReason !== null);
    expect(ends.map(({ index, finishReason }) => [index, finishReason])).toEqual([
      [0, "abort"],
      [1, "abort"],
    ]);
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
  }
});

test("aborting a finished, released or unknown request does nothing", () => {
  const { engine } = makeEngine();
  const request = makeRequest([1]);
  engine.add(request);
  drain(engine);
  engine.abort(request.id);
  expect(engine.result(request.id).outputs[0]!.finishReason).toBe("length");
  engine.release(request.id);
  engine.release(request.id);
  engine.abort(request.id);
  expect(engine.hasUnfinished).toBe(false);
  expect(() => engine.result(request.id)).toThrow(InvalidRequestError);
});

test("a running request is not released, and its id is taken", () => {
  const { engine } = makeEngine();
  const request = makeRequest([1]);
  engine.add(request);
  expect(() => engine.release(request.id)).toThrow(InvariantError);
  expect(() => engine.add(request)).toThrow(expect.objectContaining({ code: "duplicate_id" }));
});

test("what cannot be served is refused with the parameter at fault, and leaves no trace", () => {
  const refused: [string, string, EngineRequest][] = [
    ["prompt", "empty_prompt", makeRequest([])],
    ["prompt", "invalid_token_id", makeRequest([1, -1])],
    ["prompt", "invalid_token_id", makeRequest([VOCAB])],
    ["prompt", "invalid_token_id", makeRequest([1.5])],
    ["badWords", "invalid_token_id", makeRequest([1], {}, { badWordTokens: [[1], [VOCAB]] })],
    ["badWords", "invalid_value", makeRequest([1], {}, { badWordTokens: [[]] })],
    ["cacheSalt", "invalid_value", makeRequest([1], {}, { cacheSalt: "" })],
    ["cacheSalt", "invalid_value", makeRequest([1], {}, { cacheSalt: "é".repeat(129) })],
    ["priority", "unsupported_parameter", makeRequest([1], {}, { priority: 1 })],
    ["n", "invalid_value", makeRequest([1], { n: 2 }, { logits: true })],
    ["minTokens", "invalid_value", makeRequest(range(0, 60), { maxTokens: undefined, minTokens: 5 })],
    [
      "allowedTokenIds",
      "invalid_value",
      makeRequest([1], { minTokens: 1, stopTokenIds: [3], allowedTokenIds: [3] }),
    ],
  ];
  const { engine } = makeEngine();
  for (const [param, code, request] of refused)
    expect(() => engine.add(request)).toThrow(expect.objectContaining({ param, code }));
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
    const add = (promptLength: number, maxTokens?: number, fields = {}) => {
      const request = makeRequest(range(0, promptLength), { maxTokens, n: 2 }, fields);
      engine.add(request);
      return request;
    };
    expect(() => add(limit)).toThrow(ContextLengthError);
    expect(() => add(limit - 3, 4)).toThrow(
      expect.objectContaining({ param: "maxTokens", requested: limit + 1, limit }),
    );
    const exact = add(limit - 3, 3);
    const clamped = add(limit - 5);
    drain(engine);
    expect(engine.result(exact.id).outputs[1]!.tokenIds).toEqual(tokensOf(exact, 1));
    expect(engine.result(clamped.id).outputs.map(({ tokenIds }) => tokenIds.length)).toEqual([5, 5]);
  }
});

test("an end-of-sequence or stop id ends the text without being part of it", () => {
  const { engine } = makeEngine({ createTextStream: () => new ToyTextStream() });
  const free = makeRequest(range(2, 5), { maxTokens: 12 });
  const tokens = tokensOf(free);
  const stopId = tokens[3]!;
  const sampling = { ...free.sampling, stopTokenIds: [stopId] };
  const stopped = makeRequest(range(2, 5), sampling);
  engine.add(stopped);
  drain(engine);
  const output = engine.result(stopped.id).outputs[0]!;
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
    for (const request of [stopped, full]) engine.add(request);
    const deltas = drain(engine);
    expect(engine.result(stopped.id).outputs[0]).toMatchObject({
      ...{ finishReason: "stop", stopReason: tokens[at], tokenIds: tokens.slice(0, at + 1) },
      logprobs: { length: at + 1 },
    });
    const output = engine.result(full.id).outputs[0]!;
    expect(output).toMatchObject({ finishReason: "length", tokenIds: tokensOf(full) });
    const runs = deltas.filter(({ requestId }) => requestId === full.id);
    expect(runs.map(({ tokenIds }) => tokenIds.length)).toEqual([1, 4, 2]);
    expect(engine.stats().generationTokens).toBe(at + 1 + 7);
    expect(runner.numAccepted).toBeGreaterThan(0);
  }
});

test("log-probabilities come for output and prompt, the token itself first", () => {
  const { engine } = makeEngine({ maxNumBatchedTokens: 4, decodeToken: (id) => `<${id}>` });
  const request = makeRequest(range(0, 9), { logprobs: 2, promptLogprobs: 1 });
  engine.add(request);
  const deltas = drain(engine);
  const { outputs, promptLogprobs } = engine.result(request.id);
  const { tokens, logprobs } = reference(request, 0, 64);
  const entries = outputs[0]!.logprobs!.map((position) => [...position][0]!);
  expect(entries.map(([id, { logprob }]) => [id, logprob])).toEqual(
    tokens.map((id, i) => [id, logprobs[i]!]),
  );
  expect(entries[0]![1].decodedToken).toBe(`<${tokens[0]}>`);
  expect(outputs[0]!.logprobs![0]!.size).toBe(2);
  expect(outputs[0]!.cumulativeLogprob).toBeCloseTo(logprobs.reduce((sum, value) => sum + value));
  expect(deltas.flatMap((delta) => delta.logprobs ?? [])).toEqual(outputs[0]!.logprobs as []);
  expect(promptLogprobs!.map((position) => position && [...position.keys()][0])).toEqual([
    null,
    ...range(1, 8),
  ]);
});

test("a request for prompt log-probabilities or logits computes the whole prompt", () => {
  const { engine } = makeEngine();
  const prompt = range(0, 10);
  const logits = makeRequest(prompt, {}, { logits: true });
  for (const request of [makeRequest(prompt), makeRequest(prompt, { promptLogprobs: 0 }), logits]) {
    engine.add(request);
    drain(engine);
    expect(engine.result(request.id).numCachedTokens).toBe(0);
  }
  expect(engine.result(logits.id).outputs[0]).toMatchObject({ tokenIds: [], finishReason: "length" });
  const rows = digests(prompt, 0).map((digest) =>
    Array.from({ length: VOCAB }, (_, v) => logprobOf(digest, v)),
  );
  expect([...engine.logits(logits.id)]).toEqual(rows.flat());
  expect(() => engine.logits("other")).toThrow(InvalidRequestError);
});

test("logits of which only a part was computed are not given out", () => {
  const faults: (Fault | undefined)[] = [undefined, "collect"];
  const { engine } = makeEngine({ maxNumBatchedTokens: 8 }, { fault: () => faults.shift() });
  const [failed, aborted] = [0, 1].map(() => makeRequest(range(0, 20), {}, { logits: true }));
  engine.add(failed!);
  drain(engine);
  expect(() => engine.logits(failed!.id)).toThrow(RequestFailedError);
  engine.add(aborted!);
  engine.step();
  engine.abort(aborted!.id);
  drain(engine);
  expect(() => engine.logits(aborted!.id)).toThrow(InvalidRequestError);
});

test("more logits than one array holds are refused", () => {
  const limits = { maxModelLen: 4096, poolTokens: 4096, vocabSize: 2 ** 20 };
  const request = (length: number) => makeRequest(range(0, length), {}, { logits: true });
  expect(checkRequest(request(1024), limits)).toBe(0);
  expect(() => checkRequest(request(1025), limits)).toThrow(ContextLengthError);
});

test("a failed step ends the completions in it, caches nothing, and the next request is served", () => {
  for (const kind of ["launch", "collect"] as const) {
    const faults: (Fault | undefined)[] = [kind];
    const { engine } = makeEngine({}, { fault: () => faults.shift() });
    const [hit, spared] = [makeRequest(range(0, 8)), makeRequest(range(0, 8))];
    engine.add(hit);
    const [delta] = engine.step();
    expect(delta).toMatchObject({ finishReason: "error", tokenIds: [] });
    expect(delta!.error).toBeInstanceOf(RequestFailedError);
    expect(engine.stats()).toMatchObject({ cachedBlocks: 0, kvUsage: 0 });
    engine.add(spared);
    drain(engine);
    expect(engine.result(spared.id).outputs[0]!.tokenIds).toEqual(tokensOf(spared));
  }
});

test("a row without finite logits ends its completion alone, and nothing of its prompt is cached", () => {
  const faults: (Fault | undefined)[] = [undefined, "nan"];
  const { engine, runner } = makeEngine({ maxNumBatchedTokens: 8 }, { fault: () => faults.shift() });
  const [short, long] = [makeRequest(range(5, 1)), makeRequest(range(0, 16))];
  engine.add(short);
  engine.step();
  engine.add(long);
  drain(engine);
  expect([...runner.victims]).toEqual([short.sampling.seed!]);
  expect(engine.result(short.id).outputs[0]).toMatchObject({
    finishReason: "error",
    error: { code: "numerical_error" },
  });
  expect(engine.result(long.id).outputs[0]!.tokenIds).toEqual(tokensOf(long));
});

test("chunks of a prompt that turns out not to be finite are never shared", () => {
  const faults: (Fault | undefined)[] = ["nan"];
  const { engine } = makeEngine({ maxNumBatchedTokens: 8 }, { fault: () => faults.shift() });
  const [bad, good] = [makeRequest(range(0, 16)), makeRequest(range(0, 16))];
  engine.add(bad);
  engine.add(good);
  drain(engine);
  expect(engine.result(bad.id).outputs[0]!.error).toMatchObject({ code: "numerical_error" });
  expect(engine.result(good.id).outputs[0]!.tokenIds).toEqual(tokensOf(good));
});

test("a failing text stream ends its own completion", () => {
  const streams = [new ToyTextStream(1), new ToyTextStream()];
  const { engine } = makeEngine({ createTextStream: () => streams.shift()! });
  const requests = [makeRequest(range(0, 3)), makeRequest(range(0, 3))];
  for (const request of requests) engine.add(request);
  drain(engine);
  const [failed, fine] = requests.map(({ id }) => engine.result(id).outputs[0]!);
  expect(failed).toMatchObject({ finishReason: "error", error: { code: "detokenize_failed" } });
  expect(failed!.tokenIds).toHaveLength(2);
  expect(fine!.finishReason).toBe("length");
});

test("when the runner dies every request ends with the error, and later calls throw", () => {
  for (const death of [new EngineDeadError("the device is gone"), new InvariantError("a bug")]) {
    const faults: (Fault | undefined)[] = [undefined, "dead"];
    const { engine } = makeEngine({ overlap: true, maxNumSeqs: 1 }, { fault: () => faults.shift(), death });
    const requests = [makeRequest(range(0, 3), { n: 2 }), makeRequest(range(0, 3))];
    for (const request of requests) engine.add(request);
    const deltas = drain(engine);
    expect(deltas.map(({ finishReason }) => finishReason)).toEqual(["error", "error", "error"]);
    for (const { error } of deltas) expect(error).toBeInstanceOf(EngineDeadError);
    expect(engine.failure).toBeInstanceOf(EngineDeadError);
    expect(() => engine.step()).toThrow(EngineDeadError);
    expect(() => engine.add(makeRequest([1]))).toThrow(EngineDeadError);
    expect(engine.result(requests[0]!.id).finished).toBe(true);
    engine.abort(requests[0]!.id);
    engine.checkIntegrity();
  }
});

test("dispose ends the engine and its runner, twice is once", () => {
  const { engine, runner } = makeEngine();
  engine.add(makeRequest([1]));
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
  engine.add(makeRequest([1], sampling, { badWordTokens: [[2, 3]] }));
  engine.step();
  const joined = runner.launched[0]!.joins.map((join) => join.sampling);
  expect(joined.map(({ seed }) => seed)).toEqual([2n ** 64n - 1n, 0n]);
  expect(joined[0]).toMatchObject({ bannedTokens: [0, 4], bannedUntil: 4, badWords: [[2, 3]] });
});
