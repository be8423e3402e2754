import { expect, setDefaultTimeout, test } from "bun:test";
import type { ResolvedSamplingParams } from "../../../src/base/sampling-params.ts";
import { Completion, positionLogprobs, type TextStream } from "../../../src/engine/completion.ts";
import { makeRequest } from "./helpers.ts";

setDefaultTimeout(300_000);

/** Everything that a completion has not handed out yet. */
const rest = (completion: Completion) => completion.takeDelta()!;

/** Token i is the i-th of `words`; `held` comes with the flush. */
function complete(words: string[], sampling: Partial<ResolvedSamplingParams> = {}, held = ""): Completion {
  const textStream: TextStream = { push: (id) => words[id]!, flush: () => held };
  return new Completion({
    ...{ requestId: "r", index: 1, maxTokens: 8, eosTokenIds: new Set([99]) },
    openTextStream: () => textStream,
    sampling: makeRequest([1], sampling).sampling,
  });
}

test("text held back for a stop string comes with a later delta, and its tokens with it", () => {
  const completion = complete(["a", "S", "T", "b"], { stop: ["STOP"] });
  completion.append(0);
  expect(completion.takeDelta()).toMatchObject({ text: "a", tokenIds: [0] });
  completion.append(1);
  expect(completion.takeDelta()).toBeUndefined();
  completion.append(2);
  expect(completion.takeDelta()).toBeUndefined();
  completion.append(3);
  expect(completion.takeDelta()).toMatchObject({ text: "STb", tokenIds: [1, 2, 3], finishReason: null });
});

test("a stop string ends the text before it, or after it when asked", () => {
  for (const includeStopStrInOutput of [false, true]) {
    const completion = complete(["a", "xST", "OPy"], { stop: ["STOP"], includeStopStrInOutput });
    for (const id of [0, 1, 2]) completion.append(id);
    const text = includeStopStrInOutput ? "axSTOP" : "ax";
    const tokenIds = [0, 1, 2];
    expect(rest(completion)).toMatchObject({ text, tokenIds, finishReason: "stop", stopReason: "STOP" });
  }
});

test("stop strings and stop ids do not count before minTokens", () => {
  const completion = complete(["S", "S", "S"], { stop: ["S"], stopTokenIds: [1], minTokens: 2 });
  completion.append(0);
  completion.append(1);
  expect(completion.finishReason).toBeNull();
  completion.append(2);
  expect(rest(completion)).toMatchObject({ text: "SS", finishReason: "stop", stopReason: "S" });
});

test("an end-of-sequence token gives no text, flushes what is held back, and has no stop reason", () => {
  const completion = complete(["a", "ST"], { stop: ["STOP"] }, "�");
  for (const id of [0, 1, 99]) completion.append(id);
  const tokenIds = [0, 1, 99];
  expect(rest(completion)).toMatchObject({ text: "aST�", tokenIds, finishReason: "stop", stopReason: null });
});

test("the last allowed token ends the text with length, or with the stop string that its flush completes", () => {
  const cut = complete(Array(8).fill("a"));
  for (let id = 0; id < 8; id++) cut.append(id);
  expect(rest(cut)).toMatchObject({ text: "a".repeat(8), finishReason: "length" });
  const flushed = complete(Array(8).fill("a"), { stop: ["ab"] }, "b");
  for (let id = 0; id < 8; id++) flushed.append(id);
  expect(rest(flushed)).toMatchObject({ text: "a".repeat(7), finishReason: "stop", stopReason: "ab" });
});

test("finalOnly sends one delta with everything", () => {
  const completion = complete(["a", "b"], { outputKind: "finalOnly" });
  completion.append(0);
  expect(completion.takeDelta()).toBeUndefined();
  completion.append(1);
  completion.finish("abort");
  expect(completion.takeDelta()).toMatchObject({
    index: 1,
    text: "ab",
    tokenIds: [0, 1],
    finishReason: "abort",
  });
});

test("an error keeps the text so far, even if the text stream cannot be flushed", () => {
  const textStream: TextStream = {
    push: () => "S",
    flush: () => {
      throw new Error("broken");
    },
  };
  const sampling = makeRequest([1], { stop: ["ST"] }).sampling;
  for (const reason of ["error", "abort"] as const) {
    const completion = new Completion({
      ...{ requestId: "r", index: 0, maxTokens: 8, eosTokenIds: new Set<number>(), sampling },
      openTextStream: () => textStream,
    });
    completion.append(0);
    completion.finish(reason, null, reason === "error" ? new Error("first") : undefined);
    const message = reason === "error" ? "first" : "turning tokens into text failed: broken";
    expect(rest(completion)).toMatchObject({ text: "S", finishReason: "error", error: { message } });
  }
});

test("log-probabilities: the drawn token first, then the best that were asked for", () => {
  const rows = {
    chosenIds: Int32Array.of(7, 3),
    chosenLogprobs: Float32Array.of(-3, -0.5),
    chosenRanks: Int32Array.of(9, 1),
    topIds: Int32Array.of(1, 2, 3, 4),
    topLogprobs: Float32Array.of(-1, -2, -0.5, -4),
    topCount: 2,
  };
  const decode = (id: number) => `t${id}`;
  expect([...positionLogprobs(rows, 0, 1, decode)]).toEqual([
    [7, { logprob: -3, rank: 9, decodedToken: "t7" }],
    [1, { logprob: -1, rank: 1, decodedToken: "t1" }],
  ]);
  expect([...positionLogprobs(rows, 1, 2, decode).keys()]).toEqual([3, 4]);
});
