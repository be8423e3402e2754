import { expect, setDefaultTimeout, test } from "bun:test";
import type { MaskEngines } from "../../../src/grammar/mask-engines.ts";
import { MatcherThread } from "../../../src/grammar/matcher-thread.ts";
import {
  AnswerState,
  MatcherMemory,
  STAGE_WORDS,
  type StageReply,
  StageWord,
} from "../../../src/grammar/stage-protocol.ts";

setDefaultTimeout(300_000);

const VOCABULARY = 40;

/** A thread whose masks are `masks`, one after the other, and take `milliseconds` each. */
async function setUp(masks: readonly number[], milliseconds: number) {
  let [now, made] = [0, 0];
  const matcher = {
    acceptToken: () => true,
    isTerminated: () => false,
    dispose: () => {},
    getNextTokenBitmask: async () => {
      now += milliseconds;
      return Int32Array.of(masks[made++ % masks.length]!, -1);
    },
  };
  const engines = {
    vocabSize: VOCABULARY,
    of: async () => ({ unusedToken: 0, matcher: async () => matcher }),
  };
  const words = new Int32Array(new SharedArrayBuffer(4 * STAGE_WORDS));
  const posted: StageReply[] = [];
  const thread = new MatcherThread(
    engines as unknown as MaskEngines,
    words.buffer,
    (reply) => posted.push(reply),
    () => now,
  );
  const memory = MatcherMemory.allocate(VOCABULARY);
  const init = { id: 1, grammar: "", markers: [], stopTokenIds: [1], allowedTokenIds: undefined };
  await thread.handle({ type: "open", ...init, tokens: [], memory: memory.buffer });
  let numTokens = 0;
  const accept = async () => {
    memory.tell(++numTokens, 5);
    await thread.takeTokens();
  };
  return { thread, words, posted, memory, accept };
}

test("each token is answered once, and a mask has another version only when it is another", async () => {
  const { thread, words, memory, accept } = await setUp([3, 3, 6], 0);
  expect([memory.numAnswers, memory.state, memory.mask[0], memory.mask[1]]).toEqual([
    1,
    AnswerState.mask,
    3,
    255,
  ]);
  const { version } = memory;
  await thread.takeTokens();
  expect(memory.numAnswers).toBe(1);
  await accept();
  expect([memory.numAnswers, memory.version]).toEqual([2, version]);
  await accept();
  expect([memory.mask[0], memory.version]).toEqual([6, version + 1]);
  expect(words[StageWord.answers]).toBe(3);
});

test("an answer is posted when somebody listens, once", async () => {
  const { words, posted, accept } = await setUp([3], 0);
  await accept();
  expect(posted).toEqual([]);
  words[StageWord.listens] = 1;
  await accept();
  await accept();
  expect(posted).toEqual([{ type: "answered" }]);
});

test("a matcher whose masks take too long ends: four in a row, or many that are half as slow", async () => {
  for (const [milliseconds, expected] of [
    [300, 4],
    [120, 101],
    [20, Infinity],
  ] as const) {
    const { memory, accept } = await setUp([3], milliseconds);
    while (memory.state !== AnswerState.slow && memory.numAnswers < 600) await accept();
    expect(memory.state === AnswerState.slow ? memory.numAnswers : Infinity).toBe(expected);
  }
});
