import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { BlockManager } from "../../../src/engine/block-manager.ts";
import { type ScheduledStep, Scheduler } from "../../../src/engine/scheduler.ts";
import { Sequence } from "../../../src/engine/sequence.ts";
import { range, sha256 } from "./helpers.ts";

setDefaultTimeout(300_000);

/** A scheduler whose steps are computed at once or left in flight. */
function setUp(
  options: {
    numBlocks?: number;
    maxNumSeqs?: number;
    budget?: number;
    cache?: boolean;
    maxDrafts?: number;
    batchInvariant?: boolean;
    attentionReach?: number;
  } = {},
) {
  const { numBlocks = 16, maxNumSeqs = 4, budget = 16, cache = false, maxDrafts = 0 } = options;
  const { batchInvariant = false, attentionReach = Infinity } = options;
  const blocks = new BlockManager(numBlocks, 4, cache ? sha256 : undefined);
  const scheduler = new Scheduler(blocks, {
    ...{ maxNumSeqs, maxNumBatchedTokens: budget, maxDrafts, batchInvariant, attentionReach },
  });
  let ordinal = 0;
  const inFlight: ScheduledStep[] = [];

  const add = (prompt: number[], maxTokens = 20, leader?: Sequence, lockstep = false): Sequence => {
    const sequence = new Sequence({
      ...{
        ordinal: ordinal++,
        promptTokenIds: Int32Array.from(prompt),
        maxTokens,
        logits: false,
        salt: "",
        leader,
      },
      ...{ logprobs: undefined, promptLogprobs: undefined, lockstep },
      sampling: {} as Sequence["sampling"],
    });
    scheduler.add(sequence);
    return sequence;
  };
  const launch = (): ScheduledStep | undefined => {
    const step = scheduler.schedule(inFlight.length === 0);
    scheduler.checkIntegrity();
    if (!step) return undefined;
    inFlight.push(step);
    for (const sequence of step.sequences) sequence.inFlight++;
    return step;
  };
  /** Of each row's drafts at most `accepted` are. */
  const collect = (accepted = 0): void => {
    const { sequences, batch } = inFlight.shift()!;
    for (const [i, sequence] of sequences.entries()) {
      const row = batch.rows[i]!;
      sequence.inFlight--;
      if (sequence.status === "finished") {
        scheduler.drain(sequence);
        continue;
      }
      const drawn = row.sample ? 1 + Math.min(accepted, row.drafts ?? 0) : 0;
      sequence.collect(row, new Int32Array(drawn).fill(7), 0, drawn);
      if (row.sample) scheduler.settle(sequence);
    }
    scheduler.checkIntegrity();
  };
  /** Launches and collects a step; its rows as [slot, start, count, sample]. */
  const step = (): unknown[] | undefined => {
    const launched = launch();
    const rows = launched?.batch.rows.map(({ slot, count, sample }, i) => {
      return [slot, launched.sequences[i]!.numScheduledTokens - count, count, sample];
    });
    if (launched) collect();
    return rows;
  };
  return { blocks, scheduler, add, launch, collect, step };
}

test.each([
  [false, [1, 2, 3]],
  [true, [0, 1, 2]],
])("with batchInvariant %p, single tokens of prompts are decode rows or not", (batchInvariant, expected) => {
  const { add, launch, collect } = setUp({ budget: 5, cache: true, batchInvariant });
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
  const { add, step } = setUp({ budget: 6 });
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
  const { add, step } = setUp({ maxNumSeqs: 6, budget: 200_000, numBlocks: 40_000 });
  for (const length of lengths) add(range(0, length));
  expect(step()).toHaveLength(6);
  const order = [1, 4, 3, 0, 2, 5];
  expect(step()).toEqual(order.map((slot) => [slot, lengths[slot], 1, true]));
});

test("prompts are served in order of arrival under one budget, rows of one token first", () => {
  const { add, launch } = setUp({ budget: 10 });
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
    const { add, scheduler, step } = setUp(options);
    for (let i = 0; i < 4; i++) add([1]);
    for (let i = 0; i < 3; i++) step();
    expect([scheduler.running.size, scheduler.waiting.size]).toEqual([2, 2]);
  }
});

test("joins carry the known tokens and updates each new block", () => {
  const { add, launch } = setUp();
  add(range(3, 6));
  const { batch } = launch()!;
  const joins = batch.joins.map(({ slot, tokens, numComputedTokens }) => {
    return [slot, [...tokens], numComputedTokens];
  });
  expect(joins).toEqual([[0, range(3, 6), 0]]);
  expect(batch.blockTableUpdates).toEqual([
    { slot: 0, index: 0, block: 0 },
    { slot: 0, index: 1, block: 1 },
  ]);
});

test("decodes are launched ahead of their tokens, but never past the length limit", () => {
  const { add, launch, collect, scheduler } = setUp();
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
  const { add, launch, collect, step, scheduler, blocks } = setUp({ numBlocks: 4 });
  const [first, second] = [add(range(0, 7)), add(range(5, 4))];
  step();
  launch();
  expect(blocks.numFree).toBe(0);
  expect([launch(), scheduler.numPreemptions]).toEqual([undefined, 0]);
  collect();
  expect(step()).toEqual([[0, 8, 1, true]]);
  expect([first.status, second.status, scheduler.numPreemptions]).toEqual(["running", "waiting", 1]);
  expect([second.length, second.blockTable.length, second.slot]).toEqual([6, 0, -1]);
});

test("a preempted sequence goes before later arrivals and is computed again with its output", () => {
  const { add, step, scheduler } = setUp({ numBlocks: 4, maxNumSeqs: 2 });
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
  const { add, step, scheduler } = setUp({ numBlocks: 4 });
  const sequence = add(range(0, 2), 14);
  while (sequence.length < 16) expect(step()).toHaveLength(1);
  expect(step()).toBeUndefined();
  expect(scheduler.numPreemptions).toBe(0);
});

test("admission leaves each running sequence a block to grow into", () => {
  const { add, step, scheduler } = setUp({ numBlocks: 4 });
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
  const { add, launch, collect, blocks, scheduler } = setUp();
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
  const { add, launch, step, scheduler } = setUp({ cache: true });
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
  const { add, step, scheduler, blocks } = setUp({ cache: true, numBlocks: 4 });
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
  const { add, launch, collect, scheduler } = setUp({ cache: true, budget: 12 });
  const leader = add(range(0, 9));
  const sibling = add(range(0, 9), 20, leader);
  const other = add(range(4, 2));
  launch();
  expect([leader.status, sibling.status, other.status]).toEqual(["running", "waiting", "running"]);
  launch();
  expect(sibling.status).toBe("waiting");
  collect();
  const { batch } = launch()!;
  expect(sibling.blockTable.slice(0, 2)).toEqual(leader.blockTable.slice(0, 2));
  expect(batch.rows.find(({ slot }) => slot === sibling.slot)).toMatchObject({ count: 1 });
  expect(sibling.numScheduledTokens).toBe(9);
  expect(scheduler.waiting.size).toBe(0);
});

test("a sibling does not wait for a leader that is gone", () => {
  const { add, launch, scheduler } = setUp({ cache: true });
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
    const { add, launch, collect, blocks } = setUp({ maxDrafts: 3 });
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
    const { add, launch, collect, blocks } = setUp({ maxDrafts: 3 });
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
    const { add, launch, collect, blocks } = setUp({ maxDrafts: 3, cache: true });
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
    const { add, launch, collect } = setUp({ maxDrafts: 3 });
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
    const { add, step } = setUp({ maxDrafts: 3, budget: 8 });
    for (let i = 0; i < 3; i++) add([1]);
    step();
    add(range(0, 9));
    expect(step()!.map((row) => (row as number[])[2])).toEqual([2, 2, 2, 2]);
    expect(step()!.map((row) => (row as number[])[2])).toEqual([2, 2, 2, 2]);
  });

  test("are left out when there are no blocks for them: nobody is preempted for a guess", () => {
    const { add, step, scheduler } = setUp({ maxDrafts: 3, numBlocks: 5 });
    add(range(0, 6));
    add(range(5, 6));
    step();
    expect(step()!.map((row) => (row as number[])[2])).toEqual([1, 1]);
    expect(scheduler.numPreemptions).toBe(0);
  });
});

test("in lockstep a sequence is not launched before its token is collected, nor with drafts; others are", () => {
  const { add, launch, collect } = setUp({ maxDrafts: 2, cache: false });
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

describe("windows", () => {
  // Blocks of 4 tokens; a query sees 6 tokens, its own included.
  const WINDOW = { attentionReach: 6, budget: 64 } as const;

  test("blocks that no later token sees are given back as soon as it is known", () => {
    const { add, step, blocks } = setUp(WINDOW);
    const sequence = add(range(0, 17));
    step();
    // 17 tokens are computed: the next, 17, sees from 12 on.
    expect([sequence.firstBlock, blocks.numFree]).toEqual([3, 16 - 2]);
    for (let i = 0; i < 3; i++) step();
    expect([sequence.numComputedTokens, sequence.firstBlock, blocks.numFree]).toEqual([20, 3, 16 - 2]);
    step();
    // Token 21 sees from 16 on.
    expect([sequence.numComputedTokens, sequence.firstBlock, blocks.numFree]).toEqual([21, 4, 16 - 2]);
  });

  test("more sequences run than would fit whole", () => {
    const { add, step, scheduler } = setUp({ ...WINDOW, numBlocks: 11, maxNumSeqs: 3 });
    const all = [0, 1, 2].map(() => add(range(0, 17), 40));
    for (let i = 0; i < 20; i++) step();
    expect(scheduler.running.size).toBe(3);
    expect(scheduler.numPreemptions).toBe(0);
    expect(all.map(({ length }) => length > 30)).toEqual([true, true, true]);
  });

  test("a prefix is a hit when what is seen after it is cached, whatever came before", () => {
    const { add, step, scheduler, blocks } = setUp({ ...WINDOW, cache: true, numBlocks: 8 });
    const first = add(range(0, 17), 1);
    step();
    scheduler.finish(first);
    // The first two blocks are needed for something else: of what was released, they were so first.
    const other = add(range(50, 22), 1);
    step();
    scheduler.finish(other);
    const cached = [0, 1, 2, 3].map(
      (i) => blocks.cache!.match(first.chain, first.tokens, i + 1, () => i).blocks.length,
    );
    expect(cached).toEqual([0, 0, 1, 1]);
    const again = add(range(0, 17));
    const rows = step();
    // Token 16 sees from 11 on: blocks 2 and 3 are enough.
    expect(rows).toEqual([[expect.any(Number), 16, 1, true]]);
    expect(again.numCachedTokens).toBe(16);
    expect(again.blockTable.slice(0, 2)).toEqual([-1, -1]);
    // Where a block of the window is missing, it is none.
    expect(add(range(0, 12)).chain.keys).toEqual([]);
    scheduler.finish(again);
  });

  test("a preempted sequence starts anew with all of its blocks", () => {
    const { add, step, scheduler } = setUp({ ...WINDOW, numBlocks: 5, maxNumSeqs: 2 });
    const both = [add(range(0, 5), 23), add(range(0, 5), 23)];
    for (let i = 0; i < 80; i++) {
      step();
      for (const each of both)
        if (each.status === "running" && each.length === each.maxLength) scheduler.finish(each);
    }
    expect(scheduler.numPreemptions).toBeGreaterThan(0);
    expect(both.map(({ length, status }) => [length, status])).toEqual([
      [28, "finished"],
      [28, "finished"],
    ]);
  });
});
