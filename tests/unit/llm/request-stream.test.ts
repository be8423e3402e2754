import { describe, expect, test } from "bun:test";
import { getEventListeners } from "node:events";
import { EngineDeadError } from "../../../src/base/errors.ts";
import type { CompletionDelta } from "../../../src/base/outputs.ts";
import type { ResolvedSamplingParams } from "../../../src/base/sampling-params.ts";
import type { Engine } from "../../../src/engine/engine.ts";
import { checkRequest } from "../../../src/engine/request.ts";
import { OpenRequests } from "../../../src/llm/open-requests.ts";
import type { StreamOptions } from "../../../src/llm/request-stream.ts";
import { StepLoop } from "../../../src/llm/step-loop.ts";
import { collect, rejection } from "../../llm/support.ts";
import { eventually } from "../../support.ts";
import { makeEngine, makeRequest } from "../engine/helpers.ts";

/** An engine, its loop and their streams in this thread. */
class Setup {
  readonly open = new OpenRequests();
  readonly loop: StepLoop;

  constructor(readonly engine: Engine = makeEngine().engine) {
    this.loop = new StepLoop(engine, this.open);
  }

  /** A stream of one request for each of these. */
  stream(samplings: readonly Partial<ResolvedSamplingParams>[], options: Partial<StreamOptions> = {}) {
    const prompts = samplings.map((sampling) => {
      const request = checkRequest(makeRequest([1, 2, 3], sampling), this.engine.limits);
      return { request, prompt: undefined };
    });
    this.loop.add(prompts.map(({ request }) => request));
    return this.open.open(prompts, { abort: (ids) => this.loop.abort(ids), ...options });
  }

  readonly idle = () => eventually(() => !this.engine.hasUnfinished && this.open.size === 0);
}

const tokensOf = (deltas: readonly CompletionDelta[]) => deltas.flatMap(({ tokenIds }) => tokenIds);

describe("a step loop and its streams", () => {
  test("each stream gets its own deltas, and the loop starts again after a pause", async () => {
    const setup = new Setup();
    const streams = [setup.stream([{}]), setup.stream([{}])];
    for (const stream of streams.toReversed()) {
      const deltas = await collect(stream);
      expect(deltas.every(({ requestId }) => requestId === stream.requests[0]!.id)).toBe(true);
      expect(tokensOf(deltas)).toHaveLength(4);
    }
    await setup.idle();
    expect(tokensOf(await collect(setup.stream([{}])))).toHaveLength(4);
  });

  test("a step that throws ends everything: what came is delivered, then the cause", async () => {
    const setup = new Setup();
    const { engine } = setup;
    const step = engine.step.bind(engine);
    let left = 2;
    engine.step = () => {
      if (left-- === 0) throw new RangeError("a bug");
      return step();
    };
    const [a, b] = [setup.stream([{}]), setup.stream([{}, {}])];
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
    expect(setup.open.size).toBe(0);
    expect(() => setup.stream([{}])).toThrow(EngineDeadError);
  });

  test("a stopped loop makes no further step, and the first reason stays", async () => {
    const setup = new Setup();
    const stream = setup.stream([{ maxTokens: 16 }]);
    await stream.next();
    const { steps } = setup.engine.stats();
    const reason = new EngineDeadError("enough");
    setup.loop.stop(reason);
    setup.loop.stop(new EngineDeadError("more than enough"));
    expect(await rejection(collect(stream))).toBe(reason);
    await new Promise((resolve) => setImmediate(resolve));
    expect(setup.engine.stats().steps).toBe(steps);
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
      const setup = new Setup();
      const stream = setup.stream(samplings);
      const deltas: CompletionDelta[] = [];
      while (deltas.length < pauseAfter) deltas.push((await stream.next()).value!);
      await setup.idle();
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
    const setup = new Setup();
    let ended = 0;
    const stream = setup.stream([{ maxTokens: 2 }, { maxTokens: 7 }], { onEnd: () => ended++ });
    const deltas = await collect(stream);
    expect(deltas.filter(({ finishReason }) => finishReason === "length")).toHaveLength(2);
    expect(deltas.at(-1)!.requestId).toBe(stream.requests[1]!.id);
    expect(ended).toBe(2);
    expect(await collect(setup.stream([]))).toEqual([]);
  });

  test("aborts what is unfinished, and only that; when all have ended, nothing", async () => {
    const setup = new Setup();
    const aborted: string[] = [];
    const abort = (ids: readonly string[]) => {
      aborted.push(...ids);
      setup.loop.abort(ids);
    };
    const { signal } = new AbortController();
    const stream = setup.stream([{ maxTokens: 1 }, { maxTokens: 16 }], { abort, signal });
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
    const setup = new Setup();
    const stream = setup.stream([{ maxTokens: 16 }, { maxTokens: 16 }]);
    for await (const _ of stream) break;
    await setup.idle();
    expect(await collect(stream)).toEqual([]);
    expect(setup.engine.stats().generationTokens).toBeLessThan(32);
  });
});
