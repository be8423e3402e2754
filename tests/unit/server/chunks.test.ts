import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type {
  CompletionDelta,
  GenerationStream,
  PositionLogprobs,
  SubmittedRequest,
} from "../../../src/base/outputs.ts";
import { type Chunk, type ChunkOptions, chunksOf } from "../../../src/server/replies/chunks.ts";

setDefaultTimeout(300_000);

const request = (id: string, n: number) => ({ id, sampling: { n } }) as unknown as SubmittedRequest;

/** Two prompts with two completions each. */
const REQUESTS = [request("7", 2), request("9", 2)];

const delta = (
  requestId: string,
  index: number,
  tokenIds: number[],
  fields: Partial<CompletionDelta> = {},
) => ({
  ...{ requestId, index, tokenIds, text: tokenIds.map((id) => `<${id}>`).join("") },
  ...{ finishReason: null, stopReason: null, ...fields },
});

const prompt = async ({ id }: SubmittedRequest) => `prompt ${id}:`;

/** The chunks of these deltas, and whether the requests have been ended. */
async function chunks(deltas: readonly CompletionDelta[], options: Partial<ChunkOptions<string>> = {}) {
  let ended = 0;
  const stream: GenerationStream = {
    requests: REQUESTS,
    abort: () => void ended++,
    async *[Symbol.asyncIterator]() {
      yield* deltas;
    },
  };
  const list: Chunk<string>[] = [];
  let error: unknown;
  try {
    const signal = new AbortController().signal;
    for await (const chunk of chunksOf(stream, { interval: 1, signal, prompt, ...options })) list.push(chunk);
  } catch (cause) {
    error = cause;
  }
  expect(ended).toBe(1);
  return { list, error };
}

const brief = (list: readonly Chunk<string>[]) =>
  list.map(
    ({ choice, prompt, text, finishReason }) =>
      `${choice}${prompt === undefined ? "" : "!"} ${text} ${finishReason}`,
  );

describe("chunks", () => {
  test("are numbered through all completions of all prompts, and say which are first", async () => {
    const deltas = [delta("9", 1, [1]), delta("7", 0, [2]), delta("9", 1, [3]), delta("9", 0, [4])];
    const { list } = await chunks(deltas);
    expect(brief(list)).toEqual(["3! <1> null", "0! <2> null", "3 <3> null", "2! <4> null"]);
    expect(list.map((chunk) => chunk.request)).toEqual([1, 0, 1, 1].map((i) => REQUESTS[i]!));
  });

  test("hold the interval's tokens after the first, or end early", async () => {
    const end = { finishReason: "stop", stopReason: "x" } as const;
    const deltas = [1, 2, 3, 4, 5].map((id) => delta("7", 0, [id]));
    const told: number[][] = [];
    const onTokens = (choice: number, count: number) => void told.push([choice, count]);
    const last = delta("7", 0, [6, 7], end);
    const { list } = await chunks([...deltas, delta("7", 1, [8]), last], { interval: 3, onTokens });
    expect(brief(list)).toEqual(["0! <1> null", "0 <2><3><4> null", "1! <8> null", "0 <5><6><7> stop"]);
    expect(list.at(-1)).toMatchObject({ tokenIds: [5, 6, 7], stopReason: "x" });
    expect(told).toEqual([...[1, 1, 1, 1, 1].map((count) => [0, count]), [1, 1], [0, 2]]);
  });

  test("begin with the part of their prompt, made once for each", async () => {
    const asked: string[] = [];
    const position: PositionLogprobs = new Map([[5, { logprob: -1, rank: 1, decodedToken: "five" }]]);
    const made = (request: SubmittedRequest) => {
      asked.push(request.id);
      return prompt(request);
    };
    const deltas = [delta("7", 0, [5], { logprobs: [position] }), delta("7", 1, [6]), delta("7", 0, [7])];
    const { list } = await chunks(deltas, { prompt: made });
    expect(list.map(({ prompt, text }) => `${prompt} ${text}`)).toEqual([
      ...["prompt 7: <5>", "prompt 7: <6>", "undefined <7>"],
    ]);
    expect(list[0]!.scores).toEqual([{ id: 5, position }]);
    expect(list[1]).not.toHaveProperty("scores");
    expect(asked).toEqual(["7"]);

    const generated = delta("7", 0, [5], { logprobs: [position], finishReason: "stop" });
    const alone = await chunks([generated], { promptOnly: true });
    expect(alone.list).toMatchObject([
      { prompt: "prompt 7:", text: "", tokenIds: [], scores: [], finishReason: "length" },
    ]);
  });

  test("end with the failure of a completion", async () => {
    const error = new Error("not finite");
    const { list, error: thrown } = await chunks([
      delta("7", 0, [1]),
      delta("7", 0, [], { finishReason: "error", error }),
      delta("7", 1, [2]),
    ]);
    expect([list.length, thrown]).toEqual([1, error]);
  });

  test("end with the signal's reason when that has ended the request", async () => {
    const reason = new Error("out of time");
    const aborted = delta("7", 0, [2], { finishReason: "abort" });
    const signalled = await chunks([delta("7", 0, [1]), aborted], { signal: AbortSignal.abort(reason) });
    expect([signalled.list.length, signalled.error]).toEqual([1, reason]);
    // Whoever else aborted it gets what there is.
    const { list, error } = await chunks([aborted]);
    expect([brief(list), error]).toEqual([["0! <2> abort"], undefined]);
  });

  test("joined are the choice", async () => {
    const position = (id: number): PositionLogprobs =>
      new Map([[id, { logprob: -id, rank: 1, decodedToken: "" }]]);
    const deltas = [1, 2, 3].map((id) => delta("7", 0, [id], { logprobs: [position(id)] }));
    const last = delta("7", 0, [4], { finishReason: "stop", stopReason: 4 });
    const { list } = await chunks([...deltas, last], { interval: 9 });
    expect(list[1]).toMatchObject({
      ...{ text: "<2><3><4>", tokenIds: [2, 3, 4], finishReason: "stop", stopReason: 4 },
    });
    expect(list[1]!.scores!.map(({ id }) => id)).toEqual([2, 3]);
  });
});
