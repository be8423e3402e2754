import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { getEventListeners } from "node:events";
import { EngineDeadError } from "../../../src/base/errors.ts";
import type { CompletionDelta } from "../../../src/base/outputs.ts";
import { collect, rejection } from "../../llm/support.ts";
import { StreamingEngine } from "./streaming-engine.ts";

setDefaultTimeout(300_000);

const tokensOf = (deltas: readonly CompletionDelta[]) => deltas.flatMap(({ tokenIds }) => tokenIds);

describe("a step loop and its streams", () => {
  test("each stream gets its own deltas, and the loop starts again after a pause", async () => {
    const streaming = new StreamingEngine();
    const streams = [streaming.stream([{}]), streaming.stream([{}])];
    for (const stream of streams.toReversed()) {
      const deltas = await collect(stream);
      expect(deltas.every(({ requestId }) => requestId === stream.requests[0]!.id)).toBe(true);
      expect(tokensOf(deltas)).toHaveLength(4);
    }
    await streaming.idle();
    expect(tokensOf(await collect(streaming.stream([{}])))).toHaveLength(4);
  });

  test("a step that throws ends everything: what came is delivered, then the cause", async () => {
    const streaming = new StreamingEngine();
    const { engine } = streaming;
    const step = engine.step.bind(engine);
    let left = 2;
    engine.step = () => {
      if (left-- === 0) throw new RangeError("a bug");
      return step();
    };
    const [a, b] = [streaming.stream([{}]), streaming.stream([{}, {}])];
    const seen: CompletionDelta[] = [];
    const error = await rejection(
      (async () => {
        for await (const delta of a) seen.push(delta);
      })(),
    );
    expect(tokensOf(seen)).toHaveLength(2);
    expect(error).toBeInstanceOf(EngineDeadError);
    expect((error as Error).cause).toBeInstanceOf(RangeError);
    expect(await rejection(collect(b))).toBe(error);
    expect(streaming.open.size).toBe(0);
    expect(() => streaming.stream([{}])).toThrow(EngineDeadError);
  });

  test("however often and in whatever way requests are aborted, the engine is told once", async () => {
    const streaming = new StreamingEngine();
    const told: (readonly string[])[] = [];
    const controller = new AbortController();
    const { signal } = controller;
    const abort = (ids: readonly string[]) => {
      told.push(ids);
      streaming.loop.abort(ids);
    };
    const stream = streaming.stream([{ maxTokens: 1 }, { maxTokens: 16 }], { signal, abort });
    while (!stream.requests[0]!.isFinished) await stream.next();
    controller.abort();
    stream.abort();
    await stream.return();
    await streaming.idle();
    stream.abort();
    expect(told).toEqual([[stream.requests[1]!.id]]);
  });

  test("a stopped loop makes no further step, and the first reason stays", async () => {
    const streaming = new StreamingEngine();
    const stream = streaming.stream([{ maxTokens: 16 }]);
    await stream.next();
    const { steps } = streaming.engine.stats();
    const reason = new EngineDeadError("enough");
    streaming.loop.stop(reason);
    streaming.loop.stop(new EngineDeadError("more than enough"));
    expect(await rejection(collect(stream))).toBe(reason);
    await new Promise((resolve) => setImmediate(resolve));
    expect(streaming.engine.stats().steps).toBe(steps);
  });
});

describe("a stream of several requests", () => {
  test("a reader that pauses gets one delta for each completion, and nothing is lost", async () => {
    const samplings = [
      { n: 2, maxTokens: 9, seed: 5n },
      { maxTokens: 12, seed: 6n, logprobs: 0 },
    ];
    /** The tokens of each completion. */
    const read = async (pauseAfter: number) => {
      const streaming = new StreamingEngine();
      const stream = streaming.stream(samplings);
      const deltas: CompletionDelta[] = [];
      while (deltas.length < pauseAfter) deltas.push((await stream.next()).value!);
      await streaming.idle();
      deltas.push(...(await collect(stream)));
      const choices = stream.requests.flatMap(({ id, sampling }) =>
        Array.from({ length: sampling.n }, (_, index) =>
          deltas.filter((delta) => delta.requestId === id && delta.index === index),
        ),
      );
      return { deltas, choices };
    };
    const whole = await read(30);
    const paused = await read(4);
    expect(whole.deltas).toHaveLength(9 + 9 + 12);
    expect(paused.deltas).toHaveLength(4 + 3);
    expect(paused.choices.map(tokensOf)).toEqual(whole.choices.map(tokensOf));
    for (const choice of paused.choices)
      expect(choice.map(({ finishReason }) => finishReason)).toEqual([
        ...choice.slice(1).map(() => null),
        "length",
      ]);
    const scored = paused.choices[2]!;
    expect(scored.flatMap(({ logprobs }) => logprobs!.flatMap((position) => [...position.keys()]))).toEqual(
      tokensOf(scored),
    );
  });

  test("ends after the last of them; of none, at once", async () => {
    const streaming = new StreamingEngine();
    let ended = 0;
    const stream = streaming.stream([{ maxTokens: 2 }, { maxTokens: 7 }], { onEnd: () => ended++ });
    const deltas = await collect(stream);
    expect(deltas.filter(({ finishReason }) => finishReason === "length")).toHaveLength(2);
    expect(deltas.at(-1)!.requestId).toBe(stream.requests[1]!.id);
    expect(ended).toBe(2);
    expect(await collect(streaming.stream([]))).toEqual([]);
  });

  test("aborts what is unfinished, and only that; when all have ended, nothing", async () => {
    const streaming = new StreamingEngine();
    const aborted: string[] = [];
    const abort = (ids: readonly string[]) => {
      aborted.push(...ids);
      streaming.loop.abort(ids);
    };
    const { signal } = new AbortController();
    const stream = streaming.stream([{ maxTokens: 1 }, { maxTokens: 16 }], { abort, signal });
    const [short, long] = stream.requests;
    expect(getEventListeners(signal, "abort")).toHaveLength(1);
    while ((await stream.next()).value!.requestId !== long!.id);
    expect(short!.isFinished).toBe(true);
    stream.abort();
    expect(aborted).toEqual([long!.id]);
    expect((await collect(stream)).at(-1)).toMatchObject({ requestId: long!.id, finishReason: "abort" });
    stream.abort();
    expect(aborted).toHaveLength(1);
    expect(getEventListeners(signal, "abort")).toEqual([]);
  });

  test("leaving the loop aborts all of them and keeps nothing", async () => {
    const streaming = new StreamingEngine();
    const stream = streaming.stream([{ maxTokens: 16 }, { maxTokens: 16 }]);
    for await (const _ of stream) break;
    await streaming.idle();
    expect(await collect(stream)).toEqual([]);
    expect(streaming.engine.stats().generationTokens).toBeLessThan(32);
  });

  test("a reader that has left is not told of a failure", async () => {
    const streaming = new StreamingEngine();
    const stream = streaming.stream([{ maxTokens: 16 }]);
    await stream.return();
    streaming.loop.stop(new EngineDeadError("enough"));
    expect(await collect(stream)).toEqual([]);
  });
});
