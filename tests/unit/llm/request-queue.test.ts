import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CompletionDelta } from "../../../src/base/outputs.ts";
import { resolveSamplingParams } from "../../../src/base/sampling-params.ts";
import type { Engine } from "../../../src/engine/engine.ts";
import type { EngineRequest } from "../../../src/engine/request.ts";
import { EngineDeadError, InvalidRequestError } from "../../../src/index.ts";
import { RequestQueue } from "../../../src/llm/request-queue.ts";
import { collect, rejection } from "../../llm/support.ts";

setDefaultTimeout(120_000);

/** Gives every request two deltas of one token; fails or refuses on demand. */
class ScriptedEngine {
  readonly running = new Map<string, number>();
  readonly log: string[] = [];

  constructor(private readonly failAt = Number.POSITIVE_INFINITY) {}

  get hasUnfinished() {
    return this.running.size > 0;
  }

  add({ id }: EngineRequest) {
    if (id === "bad") throw new InvalidRequestError("prompt", "refused");
    this.running.set(id, 0);
  }

  abort(id: string) {
    this.log.push(`abort ${id}`);
    this.running.delete(id);
  }

  release(id: string) {
    this.log.push(`release ${id}`);
  }

  step(): CompletionDelta[] {
    return [...this.running].map(([requestId, count]) => {
      if (count === this.failAt) throw new RangeError("a bug");
      const finishReason = count === 1 ? "length" : null;
      if (finishReason) this.running.delete(requestId);
      else this.running.set(requestId, count + 1);
      return { requestId, index: 0, text: `${count}`, tokenIds: [count], finishReason, stopReason: null };
    });
  }
}

const sampling = resolveSamplingParams({}, { vocabSize: 10, maxLogprobs: 0 });
const request = (id: string): EngineRequest => ({ id, promptTokenIds: [1], sampling, arrivalTime: 0 });
const queueOf = (engine: ScriptedEngine) => new RequestQueue(engine as unknown as Engine);
const texts = (deltas: readonly CompletionDelta[]) => deltas.map(({ text }) => text);

describe("the request queue", () => {
  test("hands each request its own deltas, and starts again after a pause", async () => {
    const queue = queueOf(new ScriptedEngine());
    const [a, b] = queue.addAll([request("a"), request("b")]);
    expect(texts(await collect(b!))).toEqual(["0", "1"]);
    expect(texts(await collect(a!))).toEqual(["0", "1"]);
    await Bun.sleep(1);
    const [c] = queue.addAll([request("c")]);
    expect(texts(await collect(c!))).toEqual(["0", "1"]);
  });

  test("adds all or none", () => {
    const engine = new ScriptedEngine();
    expect(() => queueOf(engine).addAll([request("a"), request("bad"), request("c")])).toThrow(
      InvalidRequestError,
    );
    expect(engine.log).toEqual(["abort a", "release a"]);
    expect(engine.running.size).toBe(0);
  });

  test("a step that throws ends everything: what came is delivered, then the cause", async () => {
    const queue = queueOf(new ScriptedEngine(1));
    const [a, b] = queue.addAll([request("a"), request("b")]);
    const seen: string[] = [];
    const error = await rejection(
      (async () => {
        for await (const { text } of a!) seen.push(text);
      })(),
    );
    expect(seen).toEqual(["0"]);
    expect(error).toBeInstanceOf(EngineDeadError);
    expect((error as Error).cause).toBeInstanceOf(RangeError);
    expect(await rejection(collect(b!))).toBe(error);
    expect(a!.failed).toBe(true);
    expect(() => queue.addAll([request("c")])).toThrow(EngineDeadError);
  });

  test("a handle aborts once at most, and only while it runs", async () => {
    const engine = new ScriptedEngine();
    const [a] = queueOf(engine).addAll([request("a")]);
    await collect(a!);
    a!.abort();
    expect(engine.log).toEqual([]);
  });
});
