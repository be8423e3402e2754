import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { EngineLoop } from "../../../src/async/engine-loop.ts";
import { decodeError, encodeError } from "../../../src/async/error-codec.ts";
import { LogprobPacker, LogprobUnpacker } from "../../../src/async/logprob-codec.ts";
import { packDeltas, unpackDeltas } from "../../../src/async/step-codec.ts";
import type { EngineReply, StepMessage } from "../../../src/async/worker-protocol.ts";
import * as errors from "../../../src/base/errors.ts";
import type { CompletionDelta, PositionLogprobs } from "../../../src/base/outputs.ts";
import { CudaError, CudaOutOfMemoryError } from "../../../src/cuda/errors.ts";
import { makeEngine, makeRequest } from "../engine/helpers.ts";

setDefaultTimeout(120_000);

describe("errors between threads", () => {
  const sent = (error: unknown) => decodeError(structuredClone(encodeError(error)));

  const samples = [
    new errors.ConfigError("maxNumSeqs", "too small"),
    new errors.ModelNotFoundError("/a", "not there"),
    new errors.ModelDataError("/a/config.json", "wrong"),
    new errors.UnsupportedModelError("/a/config.json", "unknown"),
    new errors.DownloadError("refused", 403),
    new errors.DeviceError("none"),
    new errors.InvalidRequestError("topP", "too large", "some_code"),
    new errors.ContextLengthError("prompt", "too long", 10, 5),
    new errors.ChatTemplateError("fails"),
    new errors.RequestFailedError("NaN", "numerical_error"),
    new errors.EngineDeadError("gone"),
    new errors.InvariantError("bug"),
    new CudaError("cuInit", 700, "CUDA_ERROR", "text", "detail"),
    new CudaOutOfMemoryError("cuMemAlloc", "OOM", "text", 1, 2, 3),
  ];

  test.each(samples.map((error) => [error.name, error] as const))("%s", (_, error) => {
    const copy = sent(error);
    expect(copy.constructor).toBe(error.constructor);
    expect({ ...copy, message: copy.message, stack: copy.stack }).toEqual({
      ...{ ...error, message: error.message, stack: error.stack },
    });
  });

  test("every class of Octavo's is among them", () => {
    const classes = Object.entries(errors).filter(
      ([name, value]) => name !== "OctavoError" && typeof value === "function" && /^[A-Z]/.test(name),
    );
    expect(classes.map(([name]) => name).toSorted()).toEqual(
      samples
        .map(({ name }) => name)
        .filter((name) => !name.startsWith("Cuda"))
        .toSorted(),
    );
  });

  test("causes go along, however long the chain and whatever is thrown", () => {
    const error = sent(
      new errors.EngineDeadError("outer", { cause: new TypeError("inner", { cause: "text" }) }),
    );
    expect(error.cause).toMatchObject({ name: "TypeError", message: "inner" });
    expect((error.cause as Error).cause).toMatchObject({ message: "text" });
    const circular = new Error("round");
    circular.cause = circular;
    expect(sent(circular).message).toBe("round");
    expect(sent(undefined).message).toBe("undefined");
  });
});

const logprobs = (...ids: number[]): PositionLogprobs =>
  new Map(ids.map((id, i) => [id, { logprob: -i / 3, rank: i + 1, decodedToken: `<${id}>` }]));

test("deltas come out as they went in", () => {
  const plain = { index: 0, text: "", tokenIds: [], finishReason: null, stopReason: null };
  const steps: CompletionDelta[][] = [
    [
      { ...plain, requestId: "3", text: "a 👍", tokenIds: [1, 2] },
      { ...plain, requestId: "4", index: 2, tokenIds: [7], logprobs: [logprobs(7, 8)] },
      { ...plain, requestId: "3", text: "é", tokenIds: [9], finishReason: "stop", stopReason: "x" },
      {
        ...plain,
        requestId: "5",
        finishReason: "error",
        error: new errors.RequestFailedError("NaN", "code"),
      },
    ],
    [],
    [
      { ...plain, requestId: "4", text: "b", tokenIds: [8, 7], logprobs: [logprobs(8, 7), logprobs(7, 5)] },
      { ...plain, requestId: "4", finishReason: "length", logprobs: [] },
    ],
  ];
  const packer = new LogprobPacker();
  const unpacker = new LogprobUnpacker();
  for (const deltas of steps) {
    const received: CompletionDelta[] = [];
    const packed = structuredClone(packDeltas(deltas, Number, packer));
    unpackDeltas(packed, String, unpacker, (request, delta) => {
      expect(`${request}`).toBe(delta.requestId);
      received.push(delta);
    });
    expect(received).toEqual(deltas);
  }
});

test("a token's text travels once", () => {
  const packer = new LogprobPacker();
  expect(packer.pack([null, logprobs(1, 2)]).newTexts).toEqual(["<1>", "<2>"]);
  expect(packer.pack([logprobs(2, 3)]).newTexts).toEqual(["<3>"]);
});

describe("the engine's loop", () => {
  const add = {
    badWordTokens: [],
    cacheSalt: undefined,
    arrivalTime: 0,
    aborted: false,
    type: "add" as const,
  };

  /** Runs two requests; what was posted. */
  async function run(fault: () => "dead" | undefined): Promise<EngineReply[]> {
    const death = new errors.EngineDeadError("the device is gone");
    const { engine } = makeEngine({}, { fault, death });
    const replies: EngineReply[] = [];
    const loop = new EngineLoop(engine, (reply) => replies.push(reply));
    for (const [request, maxTokens] of [1, 3].entries()) {
      const { sampling } = makeRequest([1, 2, 3], { maxTokens });
      loop.add({ ...add, request, promptTokenIds: [1, 2, 3], sampling });
    }
    loop.abort(99);
    while (!replies.some(({ type }) => type === "dead") && engine.hasUnfinished) await Bun.sleep(1);
    loop.add({ ...add, request: 7, promptTokenIds: [1], sampling: makeRequest([1]).sampling });
    return replies;
  }

  const steps = (replies: readonly EngineReply[]) =>
    replies.filter((reply): reply is StepMessage => reply.type === "step");

  test("posts each step once, and when requests start and finish", async () => {
    const replies = await run(() => undefined);
    expect(replies.every(({ type }) => type === "step")).toBe(true);
    const posted = steps(replies);
    expect(posted).toHaveLength(3);
    expect(posted.map(({ started }) => started.map(({ request }) => request))).toEqual([[0, 1], [], []]);
    expect(posted.map(({ finished }) => finished.map(({ request }) => request))).toEqual([[0], [], [1]]);
    expect(posted.map(({ numBatchedTokens }) => numBatchedTokens)).toEqual([6, 1, 1]);
  });

  test("posts that a request is computed before its first delta, with overlap as soon as it is launched", async () => {
    for (const overlap of [false, true]) {
      const { engine } = makeEngine({ overlap, maxNumBatchedTokens: 4 }, { maxInFlight: 2 });
      const replies: EngineReply[] = [];
      const loop = new EngineLoop(engine, (reply) => replies.push(reply));
      const { sampling, promptTokenIds } = makeRequest([1, 2, 3, 4, 5, 6], { maxTokens: 1 });
      loop.add({ ...add, request: 0, promptTokenIds, sampling });
      while (engine.hasUnfinished) await Bun.sleep(1);
      const posted = steps(replies);
      expect(posted.map(({ scheduled }) => scheduled.map(({ request }) => request))[0]).toEqual([0]);
      expect(posted[0]!.scheduled[0]!.metrics.firstScheduledTime).toBeNumber();
      expect(posted.flatMap(({ scheduled }) => scheduled)).toHaveLength(1);
      expect(posted.findIndex(({ started }) => started.length > 0)).toBe(overlap ? 2 : 1);
    }
  });

  test("dies with the engine: what ended before has ended, what comes later is refused", async () => {
    let launches = 0;
    const replies = await run(() => (launches++ === 1 ? "dead" : undefined));
    expect(replies.map(({ type }) => type)).toEqual(["step", "step", "dead", "refused"]);
    expect(steps(replies).flatMap(({ finished }) => finished.map(({ request }) => request))).toEqual([0]);
    const { error } = replies[2] as Extract<EngineReply, { type: "dead" }>;
    expect(error).toMatchObject({ name: "EngineDeadError", message: "the device is gone" });
  });
});
