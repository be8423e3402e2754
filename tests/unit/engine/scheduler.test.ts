import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { range } from "./helpers.ts";
import { setUpScheduler } from "./scheduler-setup.ts";

setDefaultTimeout(300_000);

test.each([
  [false, [1, 2, 3]],
  [true, [0, 1, 2]],
])("with batchInvariant %p, single tokens of prompts are decode rows or not", (batchInvariant, expected) => {
  const { add, launch, collect } = setUpScheduler({ budget: 5, cache: true, batchInvariant });
  const decodeRows: number[] = [];
  const step = () => {
    decodeRows.push(launch()!.batch.decodeRows);
    collect();
  };
  // A prompt of one token, and the first four of one of five; its last, beside a decode row; the one that is not cached of
  // the same prompt, beside two.
  add([7]);
  add(range(0, 5));
  step();
  step();
  add(range(0, 5));
  step();
  expect(decodeRows).toEqual(expected);
});

test("a prompt is computed in chunks of what the budget leaves after the decodes", () => {
  const { add, step } = setUpScheduler({ budget: 6 });
  add(range(0, 3));
  expect(step()).toEqual([[0, 0, 3, true]]);
  add(range(0, 9));
  expect(step()).toEqual([
    [0, 3, 1, true],
    [1, 0, 5, false],
  ]);
  expect(step()).toEqual([
    [0, 4, 1, true],
    [1, 5, 4, true],
  ]);
  // Rows of one token with the longest contexts first.
  expect(step()).toEqual([
    [1, 9, 1, true],
    [0, 5, 1, true],
  ]);
});

test("of contexts of any length the longest come first, and of as long ones the first to arrive", () => {
  const lengths = [5, 70_000, 5, 3000, 70_000, 5];
  const { add, step } = setUpScheduler({ maxNumSeqs: 6, budget: 200_000, numBlocks: 40_000 });
  for (const length of lengths) add(range(0, length));
  expect(step()).toHaveLength(6);
  const order = [1, 4, 3, 0, 2, 5];
  expect(step()).toEqual(order.map((slot) => [slot, lengths[slot], 1, true]));
});

test("prompts are served in order of arrival under one budget, rows of one token first", () => {
  const { add, launch } = setUpScheduler({ budget: 10 });
  add(range(0, 4));
  add(range(0, 1));
  add(range(0, 8));
  const { batch } = launch()!;
  expect(batch.rows.map(({ slot, count, sample }) => [slot, count, sample])).toEqual([
    [1, 1, true],
    [0, 4, true],
    [2, 5, false],
  ]);
  expect(batch.decodeRows).toBe(1);
  expect(batch.numTokens).toBe(10);
});

test("no more than maxNumSeqs run, nor more than a step has tokens", () => {
  for (const options of [{ maxNumSeqs: 2 }, { budget: 2 }]) {
    const { add, scheduler, step } = setUpScheduler(options);
    for (let i = 0; i < 4; i++) add([1]);
    for (let i = 0; i < 3; i++) step();
    expect([scheduler.running.size, scheduler.waiting.size]).toEqual([2, 2]);
  }
});

test("joins carry the known tokens and updates each new block", () => {
  const { add, launch } = setUpScheduler();
  add(range(3, 6));
  const { batch } = launch()!;
  const joins = batch.joins.map(({ slot, tokens, numComputedTokens }) => {
    return [slot, [...tokens], numComputedTokens];
  });
  expect(joins).toEqual([[0, range(3, 6), 0]]);
  expect(batch.blockTableUpdates).toEqual([
    { slot: 0, group: 0, index: 0, block: 0 },
    { slot: 0, group: 0, index: 1, block: 1 },
  ]);
});

test("decodes are launched ahead of their tokens, but never past the length limit", () => {
  const { add, launch, collect, scheduler } = setUpScheduler();
  const sequence = add(range(0, 3), 2);
  expect(launch()!.batch.rows[0]!.count).toBe(3);
  expect(launch()!.batch.rows).toEqual([{ slot: 0, count: 1, sample: true }]);
  expect([sequence.maxPendingTokens, sequence.numScheduledTokens]).toEqual([2, 4]);
  expect(launch()).toBeUndefined();
  collect();
  expect(launch()).toBeUndefined();
  collect();
  expect(sequence.length).toBe(5);
  scheduler.finish(sequence);
});

test("when blocks run out, the latest arrival is preempted, once nothing is in flight", () => {
  const { add, launch, collect, step, scheduler, blocks } = setUpScheduler({ numBlocks: 4 });
  const [first, second] = [add(range(0, 7)), add(range(5, 4))];
  step();
  launch();
  expect(blocks.numFree).toBe(0);
  expect([launch(), scheduler.numPreemptions]).toEqual([undefined, 0]);
  collect();
  expect(step()).toEqual([[0, 8, 1, true]]);
  expect([first.status, second.status, scheduler.numPreemptions]).toEqual(["running", "waiting", 1]);
  expect([second.length, second.blockTables.length, second.slot]).toEqual([6, 0, -1]);
});

test("a preempted sequence goes before later arrivals and is computed again with its output", () => {
  const { add, step, scheduler } = setUpScheduler({ numBlocks: 4, maxNumSeqs: 2 });
  const [first, second] = [add(range(0, 4)), add(range(5, 4))];
  const third = add(range(9, 4));
  for (let i = 0; i < 5; i++) step();
  expect(second.status).toBe("running");
  step();
  expect([first.status, second.status, third.status]).toEqual(["running", "waiting", "waiting"]);
  expect(scheduler.waiting.first).toBe(second);
  scheduler.finish(first);
  expect(step()).toEqual([[expect.any(Number), 0, second.length - 1, true]]);
});

test("a sequence alone grows to the size of the pool", () => {
  const { add, step, scheduler } = setUpScheduler({ numBlocks: 4 });
  const sequence = add(range(0, 2), 14);
  while (sequence.length < 16) expect(step()).toHaveLength(1);
  expect(step()).toBeUndefined();
  expect(scheduler.numPreemptions).toBe(0);
});

test("admission leaves each running sequence a block to grow into", () => {
  const { add, step, scheduler } = setUpScheduler({ numBlocks: 4 });
  add(range(0, 4));
  step();
  add(range(0, 9));
  step();
  expect(scheduler.running.size).toBe(1);
  add(range(0, 1));
  step();
  expect(scheduler.waiting.size).toBe(2);
});

test("a finished sequence keeps slot and blocks until its steps in flight are collected", () => {
  const { add, launch, collect, blocks, scheduler } = setUpScheduler();
  const sequence = add(range(0, 3));
  launch();
  launch();
  collect();
  scheduler.finish(sequence);
  scheduler.checkIntegrity();
  expect([sequence.slot, blocks.numFree, scheduler.draining.size]).toEqual([0, 15, 1]);
  collect();
  expect([sequence.slot, blocks.numFree, scheduler.draining.size]).toEqual([-1, 16, 0]);
});

test("at least one token is computed of a prompt that is cached entirely", () => {
  const { add, launch, step, scheduler } = setUpScheduler({ cache: true });
  const first = add(range(0, 8));
  step();
  scheduler.finish(first);
  const sequence = add(range(0, 8));
  const { joins, rows } = launch()!.batch;
  expect(joins[0]!.numComputedTokens).toBe(4);
  expect(rows).toEqual([{ slot: 0, count: 4, sample: true }]);
  expect(sequence.numCachedTokens).toBe(4);
  expect([scheduler.prefixQueries, scheduler.prefixHits]).toEqual([16, 4]);
});

test("of a freed sequence the beginning is reused last, and only computed full blocks stay cached", () => {
  const { add, step, scheduler, blocks } = setUpScheduler({ cache: true, numBlocks: 4 });
  const first = add(range(0, 14));
  step();
  expect(blocks.cache!.size).toBe(3);
  scheduler.finish(first);
  const other = add(range(9, 5));
  step();
  scheduler.finish(other);
  const again = add(range(0, 14));
  step();
  expect(again.numCachedTokens).toBe(8);
});

test("siblings wait for the prompt that the first one computes; others do not wait for them", () => {
  const { add, launch, collect, scheduler } = setUpScheduler({ cache: true, budget: 12 });
  const leader = add(range(0, 9));
  const sibling = add(range(0, 9), 20, leader);
  const other = add(range(4, 2));
  launch();
  expect([leader.status, sibling.status, other.status]).toEqual(["running", "waiting", "running"]);
  launch();
  expect(sibling.status).toBe("waiting");
  collect();
  const { batch } = launch()!;
  const [own, its] = [sibling, leader].map(({ blockTables }) => blockTables[0]!.blocks.slice(0, 2));
  expect(own).toEqual(its);
  expect(batch.rows.find(({ slot }) => slot === sibling.slot)).toMatchObject({ count: 1 });
  expect(sibling.numScheduledTokens).toBe(9);
  expect(scheduler.waiting.size).toBe(0);
});

test("a sibling does not wait for a leader that is gone", () => {
  const { add, launch, scheduler } = setUpScheduler({ cache: true });
  const leader = add(range(0, 9));
  const sibling = add(range(0, 9), 20, leader);
  launch();
  scheduler.finish(leader);
  launch();
  expect(sibling.status).toBe("running");
});

describe("drafts", () => {
  const row = (slot: number, drafts: number) => ({
    slot,
    count: 1 + drafts,
    sample: true,
    ...(drafts && { drafts }),
  });

  test("are computed with the next token of decoding sequences, in blocks for all of them", () => {
    const { add, launch, collect, blocks } = setUpScheduler({ maxDrafts: 3 });
    const sequence = add(range(0, 4));
    expect(launch()!.batch.rows).toEqual([{ slot: 0, count: 4, sample: true }]);
    collect();
    expect(launch()!.batch.rows).toEqual([row(0, 3)]);
    expect([sequence.numScheduledTokens, sequence.maxPendingTokens, blocks.numFree]).toEqual([8, 4, 14]);
    // At most 9 tokens are known when it is done: positions 8 to 11 are next, and a third block.
    expect(launch()!.batch.rows).toEqual([row(0, 3)]);
    expect([sequence.numScheduledTokens, sequence.maxPendingTokens, blocks.numFree]).toEqual([12, 8, 13]);
  });

  test("that are rejected bring the bounds down, and their positions are computed again", () => {
    const { add, launch, collect, blocks } = setUpScheduler({ maxDrafts: 3 });
    const sequence = add(range(0, 4));
    launch();
    collect();
    launch();
    launch();
    collect(1);
    expect([sequence.length, sequence.numComputedTokens]).toEqual([7, 6]);
    expect([sequence.numScheduledTokens, sequence.maxPendingTokens]).toEqual([10, 4]);
    collect(0);
    expect([sequence.length, sequence.numComputedTokens]).toEqual([8, 7]);
    expect([sequence.numScheduledTokens, sequence.maxPendingTokens]).toEqual([7, 0]);
    launch();
    expect([sequence.numScheduledTokens, blocks.numFree]).toEqual([11, 13]);
  });

  test("of a block are not published before all of its tokens are known", () => {
    const { add, launch, collect, blocks } = setUpScheduler({ maxDrafts: 3, cache: true });
    add(range(0, 4));
    launch();
    collect();
    const sizes = [0, 1, 3].map((accepted) => {
      launch();
      collect(accepted);
      return blocks.cache!.size;
    });
    // Known to be computed: 5, 7 and 11 tokens.
    expect(sizes).toEqual([1, 1, 2]);
  });

  test("never lead past the length limit, which is not reached before it is known to be", () => {
    const { add, launch, collect } = setUpScheduler({ maxDrafts: 3 });
    const sequence = add(range(0, 4), 7);
    launch();
    collect();
    expect(launch()!.batch.rows).toEqual([row(0, 3)]);
    expect(launch()!.batch.rows).toEqual([row(0, 1)]);
    expect(launch()).toBeUndefined();
    collect(0);
    expect(launch()!.batch.rows).toEqual([row(0, 2)]);
    collect(1);
    collect(2);
    expect(sequence.length).toBe(11);
    expect(launch()).toBeUndefined();
  });

  test("are shared out evenly, so that every sequence advances, prompts too", () => {
    const { add, step } = setUpScheduler({ maxDrafts: 3, budget: 8 });
    for (let i = 0; i < 3; i++) add([1]);
    step();
    add(range(0, 9));
    expect(step()!.map((row) => (row as number[])[2])).toEqual([2, 2, 2, 2]);
    expect(step()!.map((row) => (row as number[])[2])).toEqual([2, 2, 2, 2]);
  });

  test("are left out when there are no blocks for them: nobody is preempted for a guess", () => {
    const { add, step, scheduler } = setUpScheduler({ maxDrafts: 3, numBlocks: 5 });
    add(range(0, 6));
    add(range(5, 6));
    step();
    expect(step()!.map((row) => (row as number[])[2])).toEqual([1, 1]);
    expect(scheduler.numPreemptions).toBe(0);
  });
});

test("in lockstep a sequence is not launched before its token is collected, nor with drafts; others are", () => {
  const { add, launch, collect } = setUpScheduler({ maxDrafts: 2, cache: false });
  add(range(0, 3), 20, undefined, true);
  add(range(5, 2));
  launch();
  expect(launch()!.batch.rows.map(({ slot }) => slot)).toEqual([1]);
  collect();
  expect(launch()!.batch.rows).toEqual([
    { slot: 0, count: 1, sample: true },
    { slot: 1, count: 3, sample: true, drafts: 2 },
  ]);
});
