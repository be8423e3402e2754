import { expect, setDefaultTimeout, test } from "bun:test";
import { EngineDeadError, InvariantError, RequestFailedError } from "../../../src/base/errors.ts";
import type { RequestDraft } from "../../../src/engine/request.ts";
import type { Fault } from "../../simulation/fake-device.ts";
import { reference, ToyTextStream } from "../../simulation/oracle.ts";
import { Outcomes } from "../../simulation/outcomes.ts";
import { add, drain, makeEngine, makeRequest, range } from "./helpers.ts";

setDefaultTimeout(300_000);

const tokensOf = (request: RequestDraft, index = 0) => reference(request, index, 64).tokens;

test("a failed step ends the completions in it, caches nothing, and the next request is served", () => {
  for (const kind of ["launch", "collect"] as const) {
    const faults: (Fault | undefined)[] = [kind];
    const { engine } = makeEngine({}, { fault: () => faults.shift() });
    const [hit, spared] = [makeRequest(range(0, 8)), makeRequest(range(0, 8))];
    add(engine, hit);
    const [delta] = engine.step().deltas;
    expect(delta).toMatchObject({ finishReason: "error", tokenIds: [] });
    expect(delta!.error).toBeInstanceOf(RequestFailedError);
    expect(engine.stats()).toMatchObject({ cachedBlocks: 0, kvUsage: 0 });
    add(engine, spared);
    expect(drain(engine).completion(spared.id).tokenIds).toEqual(tokensOf(spared));
  }
});

test("a row without finite logits ends its completion alone, and nothing of its prompt is cached", () => {
  const faults: (Fault | undefined)[] = [undefined, "nan"];
  const { engine, runner } = makeEngine({ maxNumBatchedTokens: 8 }, { fault: () => faults.shift() });
  const [short, long] = [makeRequest(range(5, 1)), makeRequest(range(0, 16))];
  add(engine, short);
  const outcomes = new Outcomes();
  outcomes.take(engine.step());
  add(engine, long);
  drain(engine, outcomes);
  expect([...runner.victims]).toEqual([short.sampling.seed!]);
  expect(outcomes.completion(short.id)).toMatchObject({
    finishReason: "error",
    error: { code: "numerical_error" },
  });
  expect(outcomes.completion(long.id).tokenIds).toEqual(tokensOf(long));
});

test("chunks of a prompt that turns out not to be finite are never shared", () => {
  const faults: (Fault | undefined)[] = ["nan"];
  const { engine } = makeEngine({ maxNumBatchedTokens: 8 }, { fault: () => faults.shift() });
  const [bad, good] = [makeRequest(range(0, 16)), makeRequest(range(0, 16))];
  add(engine, bad);
  add(engine, good);
  const outcomes = drain(engine);
  expect(outcomes.completion(bad.id).error).toMatchObject({ code: "numerical_error" });
  expect(outcomes.completion(good.id).tokenIds).toEqual(tokensOf(good));
});

test("a failing text stream ends its own completion", () => {
  const streams = [new ToyTextStream(1), new ToyTextStream()];
  const { engine } = makeEngine({ createTextStream: () => streams.shift()! });
  const requests = [makeRequest(range(0, 3)), makeRequest(range(0, 3))];
  for (const request of requests) add(engine, request);
  const outcomes = drain(engine);
  const [failed, fine] = requests.map(({ id }) => outcomes.completion(id));
  expect(failed).toMatchObject({ finishReason: "error", error: { code: "detokenize_failed" } });
  expect(failed!.tokenIds).toHaveLength(2);
  expect(fine!.finishReason).toBe("length");
});

test("when the runner dies every request ends, and the step and later calls throw", () => {
  for (const death of [new EngineDeadError("the device is gone"), new InvariantError("a bug")]) {
    const faults: (Fault | undefined)[] = [undefined, "dead"];
    const { engine } = makeEngine({ overlap: true, maxNumSeqs: 1 }, { fault: () => faults.shift(), death });
    const requests = [makeRequest(range(0, 3), { n: 2 }), makeRequest(range(0, 3))];
    for (const request of requests) add(engine, request);
    expect(() => drain(engine)).toThrow(EngineDeadError);
    expect(engine.hasUnfinished).toBe(false);
    expect(engine.stats()).toMatchObject({ running: 0, waiting: 0, kvUsage: 0 });
    expect(() => engine.step()).toThrow(EngineDeadError);
    expect(() => add(engine, makeRequest([1]))).toThrow(EngineDeadError);
    engine.abort(requests[0]!.id);
    engine.checkIntegrity();
  }
});
