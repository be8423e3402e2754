import { expect, setDefaultTimeout, test } from "bun:test";
import { RequestFailedError } from "../../../src/base/errors.ts";
import type { OwnedDelta } from "../../../src/engine/step-output.ts";
import { DeltaQueue } from "../../../src/llm/delta-queue.ts";

setDefaultTimeout(300_000);

const delta = (text: string, tokenIds: number[], rest: Partial<OwnedDelta> = {}): OwnedDelta => ({
  ...{ requestId: "0", index: 0, text, tokenIds, finishReason: null, stopReason: null, ...rest },
});
const position = (token: number) => new Map([[token, { logprob: -1, rank: 1, decodedToken: "" }]]);

test("what follows an untaken delta is appended to it: text, tokens, log-probabilities, end and error", () => {
  const queue = new DeltaQueue();
  const error = new RequestFailedError("no text", "detokenize_failed");
  queue.push(0, delta("a", [1], { logprobs: [position(1)] }));
  queue.push(0, delta("bc", [2, 3], { logprobs: [position(2), position(3)] }));
  queue.push(0, delta("", [4], { logprobs: [position(4)], finishReason: "error", stopReason: "x", error }));
  expect(queue.take()).toEqual(
    delta("abc", [1, 2, 3, 4], {
      ...{ logprobs: [1, 2, 3, 4].map(position), finishReason: "error", stopReason: "x", error },
    }),
  );
  expect(queue.take()).toBeUndefined();
});

test("the choice that has waited longest comes first; one that was taken waits anew", () => {
  const queue = new DeltaQueue();
  for (const choice of [2, 0, 2]) queue.push(choice, delta("", [choice]));
  expect(queue.take()!.tokenIds).toEqual([2, 2]);
  queue.push(2, delta("", [5]));
  expect([queue.take()!.tokenIds, queue.take()!.tokenIds]).toEqual([[0], [5]]);
  queue.push(1, delta("", [1]));
  queue.clear();
  expect(queue.take()).toBeUndefined();
  queue.push(1, delta("", [7]));
  expect(queue.take()!.tokenIds).toEqual([7]);
});
