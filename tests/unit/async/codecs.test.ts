import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { LogprobPacker, LogprobUnpacker } from "../../../src/async/logprob-codec.ts";
import { packStep, transfersOf, unpackStep } from "../../../src/async/step-codec.ts";
import { StepPoster } from "../../../src/async/step-poster.ts";
import type { EngineReply } from "../../../src/async/worker-protocol.ts";
import * as errors from "../../../src/base/errors.ts";
import type { PositionLogprobs } from "../../../src/base/outputs.ts";
import { CudaError, CudaOutOfMemoryError } from "../../../src/cuda/errors.ts";
import { checkRequest } from "../../../src/engine/request.ts";
import type { OwnedDelta, PromptProgress, StepOutput } from "../../../src/engine/step-output.ts";
import { StepLoop } from "../../../src/llm/step-loop.ts";
import { decodeError, encodeError } from "../../../src/threads/error-codec.ts";
import { eventually } from "../../support.ts";
import { makeEngine, makeRequest } from "../engine/helpers.ts";

setDefaultTimeout(300_000);

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
    new errors.NoTokenAllowedError("allowedTokenIds", "none is left"),
    new errors.SchemaError("structuredOutputs", "contains", "/items", "not supported"),
    new errors.GrammarTooComplexError("structuredOutputs", "too many states"),
    new errors.ContextLengthError("prompt", "too long", 10, 5),
    new errors.ChatTemplateError("fails"),
    new errors.RequestFailedError("NaN", "numerical_error"),
    new errors.EngineDeadError("gone"),
    new errors.ReplicaDeadError(1, new errors.EngineDeadError("gone")),
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
    let length = 0;
    for (let cause: unknown = sent(circular); cause; cause = (cause as Error).cause) length++;
    expect(length).toBe(9);
    expect(sent(undefined).message).toBe("undefined");
  });

  test("fields that are no plain values stay behind", () => {
    const fields = { path: "/a", count: 3, none: null, list: [1], retry: () => {}, request: { headers: {} } };
    const copy = sent(Object.assign(new Error("refused"), fields));
    expect({ ...copy }).toMatchObject({ path: "/a", count: 3, none: null });
    expect(Object.keys(copy)).not.toContainAnyValues(["list", "retry", "request"]);
  });
});

const logprobs = (...ids: number[]): PositionLogprobs =>
  new Map(ids.map((id, i) => [id, { logprob: -i / 3, rank: i + 1, decodedToken: `<${id}>` }]));

test("steps come out as they went in, their token ids moved and not copied", () => {
  const plain = { index: 0, text: "", finishReason: null, stopReason: null };
  const delta = (requestId: string, fields: Partial<OwnedDelta>): OwnedDelta => {
    return { ...plain, requestId, tokenIds: [], ...fields };
  };
  const metrics = { arrivalTime: 0.5, firstScheduledTime: 1 };
  const finished = {
    ...{ id: "3", finishReasons: ["stop" as const], promptTokens: 2, cachedTokens: 0, n: 1, metrics },
    ...{ generationTokens: 3, completionTokens: [3], maxTokens: undefined },
  };
  const steps: StepOutput[] = [
    {
      deltas: [
        delta("3", { text: "a 👍", tokenIds: [1, 2] }),
        delta("4", { index: 2, tokenIds: [7], logprobs: [logprobs(7, 8)] }),
        delta("4", { tokenIds: [8, 6], logprobs: [logprobs(8), logprobs(6, 7)] }),
        delta("3", { text: "é", tokenIds: [9], finishReason: "stop", stopReason: "x" }),
        delta("5", { finishReason: "error", error: new errors.RequestFailedError("NaN", "code") }),
      ],
      prompts: [
        { id: "3", numCachedTokens: 1, metrics },
        { id: "4", numCachedTokens: 0, metrics, promptLogprobs: [null, logprobs(8, 6)] },
      ],
      finished: [finished],
      numBatchedTokens: 12,
    },
    { deltas: [], prompts: [], finished: [], numBatchedTokens: 0 },
    {
      deltas: [
        delta("4", { text: "b", tokenIds: [8, 7], logprobs: [logprobs(8, 7), logprobs(7, 5)] }),
        delta("4", { finishReason: "length", logprobs: [] }),
        ...["2147483648", "4294967297", String(Number.MAX_SAFE_INTEGER)].map((id) =>
          delta(id, { text: "c" }),
        ),
      ],
      ...{ prompts: [], finished: [], numBatchedTokens: 1 },
    },
  ];
  const packer = new LogprobPacker();
  const unpacker = new LogprobUnpacker();
  for (const step of steps) {
    const packed = packStep(step, packer);
    const sent = structuredClone(packed, { transfer: transfersOf(packed) });
    expect(packed.words).toHaveLength(0);
    expect(packed.logprobs?.values ?? []).toHaveLength(0);
    const unpacked = unpackStep(sent, unpacker);
    const read: StepOutput = { ...unpacked, prompts: unpacked.prompts.map(readPositions) };
    expect(read).toEqual(step);
  }
});

/** With maps in place of what stands for them until it is read. */
function readPositions(prompt: PromptProgress): PromptProgress {
  const positions = prompt.promptLogprobs?.map((position) => position && new Map(position));
  return positions ? { ...prompt, promptLogprobs: positions } : prompt;
}

test("a position of a prompt is a map, whichever way it is read first", () => {
  const position = logprobs(8, 6, 7);
  const reads: readonly ((map: PositionLogprobs) => unknown)[] = [
    (map) => [...map],
    (map) => [...map.entries()],
    (map) => [...map.keys()],
    (map) => [...map.values()],
    (map) => [map.size, map.get(6), map.get(5), map.has(7), map.has(5)],
    (map) => {
      const seen: unknown[] = [];
      map.forEach((value, key) => void seen.push([key, value]));
      return seen;
    },
  ];
  for (const read of reads) {
    const packed = new LogprobPacker().pack([null, position]);
    const [none, unpacked] = new LogprobUnpacker().unpackLazily(packed);
    expect(none).toBeNull();
    expect(read(unpacked!)).toEqual(read(position));
    expect(read(unpacked!)).toEqual(read(position));
  }
});

test("a token's text travels once", () => {
  const packer = new LogprobPacker();
  expect(packer.pack([null, logprobs(1, 2)]).newTexts).toEqual(["<1>", "<2>"]);
  expect(packer.pack([logprobs(2, 3)]).newTexts).toEqual(["<3>"]);
});

describe("the worker's loop", () => {
  /** Runs two requests; the messages posted. */
  async function run(fault?: () => "dead" | undefined): Promise<EngineReply[]> {
    const death = new errors.EngineDeadError("the device is gone");
    const { engine } = makeEngine({}, { ...(fault && { fault }), death });
    const replies: EngineReply[] = [];
    const post = (reply: EngineReply, transfer: ArrayBuffer[] = []) =>
      void replies.push(structuredClone(reply, { transfer }));
    const loop = new StepLoop(engine, new StepPoster(engine, post));
    const requests = [1, 3].map((maxTokens, i) =>
      checkRequest(makeRequest([1, 2, 3], { maxTokens }, { id: String(i) }), engine.limits),
    );
    loop.add(requests);
    loop.abort(["99"]);
    await eventually(() => !engine.hasUnfinished);
    return replies;
  }

  const steps = (replies: readonly EngineReply[]) =>
    replies.flatMap((reply) => (reply.type === "step" ? [reply] : []));

  test("posts each step once, with the requests that start and finish", async () => {
    const replies = await run();
    expect(replies.every(({ type }) => type === "step")).toBe(true);
    const posted = steps(replies).map(({ step, stats }) => ({ ...step, stats }));
    expect(posted.map(({ prompts }) => prompts.map(({ progress }) => progress.id))).toEqual([
      ["0", "1"],
      [],
      [],
    ]);
    expect(posted.map(({ finished }) => finished.map(({ id }) => id))).toEqual([["0"], [], ["1"]]);
    expect(posted.map(({ numBatchedTokens }) => numBatchedTokens)).toEqual([6, 1, 1]);
    expect(posted.map(({ stats }) => stats.running)).toEqual([1, 1, 0]);
  });

  test("dies with the engine, after what ended before has ended", async () => {
    let launches = 0;
    const replies = await run(() => (launches++ === 1 ? "dead" : undefined));
    expect(replies.map(({ type }) => type)).toEqual(["step", "dead"]);
    expect(steps(replies).flatMap(({ step }) => step.finished.map(({ id }) => id))).toEqual(["0"]);
    const { error } = replies[1] as Extract<EngineReply, { type: "dead" }>;
    expect(error).toMatchObject({ name: "EngineDeadError", message: "the device is gone" });
  });
});
