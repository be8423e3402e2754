import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { getEventListeners } from "node:events";
import { SplitMix64 } from "../../src/base/random.ts";
import { AsyncLLM, LLM } from "../../src/index.ts";
import { collect, expectIdle, FAST_MODEL, FAST_OPTIONS, LONG } from "./support.ts";

setDefaultTimeout(300_000);

let asyncLLM: AsyncLLM;
beforeAll(async () => {
  asyncLLM = await AsyncLLM.create(FAST_MODEL, FAST_OPTIONS);
});
afterAll(() => asyncLLM.dispose());

const PROMPT = { promptTokenIds: [5, 6, 7] };

describe("aborting", () => {
  test("in mid-stream, and once more", async () => {
    const stream = await asyncLLM.submit(PROMPT, LONG);
    const deltas = [];
    for await (const delta of stream) {
      deltas.push(delta);
      if (deltas.length === 3) stream.abort();
      if (deltas.length === 3) stream.abort();
    }
    stream.abort();
    expect(deltas.at(-1)!.finishReason).toBe("abort");
    expect(deltas.slice(0, -1).every(({ finishReason }) => finishReason === null)).toBe(true);
    expect(deltas.flatMap(({ tokenIds }) => tokenIds).length).toBeWithin(3, 399);
    await expectIdle(asyncLLM);
  });

  test("before the first token", async () => {
    const stream = await asyncLLM.submit(PROMPT, LONG);
    stream.abort();
    const deltas = await collect(stream);
    expect(deltas.map(({ finishReason }) => finishReason).at(-1)).toBe("abort");
    const { metrics } = stream.requests[0]!;
    expect(metrics.finishedTime).toBeGreaterThan(metrics.arrivalTime);
    await expectIdle(asyncLLM);
  });

  test("by a signal, all completions, and nothing listens to it any more", async () => {
    const controller = new AbortController();
    const { signal } = controller;
    const stream = await asyncLLM.submit(PROMPT, { ...LONG, temperature: 1, n: 3 }, { signal });
    const ends = [];
    for await (const { index, finishReason } of stream) {
      controller.abort();
      if (finishReason !== null) ends.push([index, finishReason]);
    }
    expect(ends.toSorted()).toEqual([0, 1, 2].map((index) => [index, "abort"]));
    expect(getEventListeners(signal, "abort")).toEqual([]);
    await expectIdle(asyncLLM);
  });

  test("by a signal that has fired already", async () => {
    const { outputs } = await asyncLLM.generate(PROMPT, LONG, { signal: AbortSignal.abort() });
    expect(outputs).toMatchObject([{ text: "", tokenIds: [], finishReason: "abort" }]);
    await expectIdle(asyncLLM);
  });

  test("by leaving the loop, of either kind of stream", async () => {
    for await (const _ of asyncLLM.stream(PROMPT, LONG)) break;
    const stream = await asyncLLM.submit(PROMPT, LONG);
    for await (const _ of stream) break;
    expect(await collect(stream)).toEqual([]);
    await expectIdle(asyncLLM);
  });
});

test("200 requests with aborts and slow readers: none is lost, none gets another's tokens", async () => {
  const random = new SplitMix64(7);
  const below = (n: number) => Number(random.next() % BigInt(n));
  const requests = Array.from({ length: 200 }, (_, i) => ({
    promptTokenIds: [3 + (i % 190), ...Array.from({ length: below(20) }, () => 3 + below(380))],
    params: { temperature: 0, maxTokens: 4 + below(24), ignoreEos: true },
    manner: (["read", "slow", "abort", "leave", "signal"] as const)[below(5)]!,
    after: below(6),
  }));
  const finished = new Map<string, number>();
  const stop = asyncLLM.onStep((report) => {
    for (const { id } of report.finished) finished.set(id, (finished.get(id) ?? 0) + 1);
  });
  const replies = await Promise.all(
    requests.map(async ({ promptTokenIds, params, manner, after }) => {
      await Bun.sleep(after * 10);
      const controller = new AbortController();
      const stream = await asyncLLM.submit({ promptTokenIds }, params, { signal: controller.signal });
      const tokens: number[] = [];
      let count = 0;
      let end: string | null = null;
      for await (const delta of stream) {
        tokens.push(...delta.tokenIds);
        end = delta.finishReason;
        if (count++ >= after && manner === "leave") break;
        if (count > after && manner === "abort") stream.abort();
        if (count > after && manner === "signal") controller.abort();
        if (manner === "slow") await Bun.sleep(20);
      }
      return { tokens, end };
    }),
  );
  await expectIdle(asyncLLM);
  stop();
  expect([...finished.values()]).toEqual(requests.map(() => 1));

  await using solo = await LLM.create(FAST_MODEL, FAST_OPTIONS);
  const ends = new Map<string, number>();
  for (const [i, { promptTokenIds, params, manner }] of requests.entries()) {
    const [reference] = await solo.generate({ promptTokenIds }, params);
    const expected = [...reference!.outputs[0]!.tokenIds];
    const { tokens, end } = replies[i]!;
    expect(tokens).toEqual(expected.slice(0, tokens.length));
    if (manner === "read" || manner === "slow" || end === "length") {
      expect({ end, length: tokens.length }).toEqual({ end: "length", length: expected.length });
    } else expect(end).toBe(manner === "leave" ? null : "abort");
    ends.set(`${end}`, (ends.get(`${end}`) ?? 0) + 1);
  }
  expect(ends.get("length")).toBeGreaterThan(50);
  expect(ends.get("abort")).toBeGreaterThan(20);
});
