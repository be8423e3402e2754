import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { Sequence } from "../../../src/engine/sequence.ts";
import { range } from "./helpers.ts";
import { setUpScheduler } from "./scheduler-setup.ts";

setDefaultTimeout(300_000);

describe("windows", () => {
  // Blocks of 4 tokens; a query sees 6 tokens, its own included.
  const WINDOW = { groups: [{ reach: 6 }], budget: 64 } as const;

  test("blocks that no later token sees are given back as soon as it is known", () => {
    const { add, step, blocks } = setUpScheduler(WINDOW);
    const sequence = add(range(0, 17));
    step();
    // 17 tokens are computed: the next, 17, sees from 12 on.
    expect([sequence.blockTables[0]!.first, blocks.numFree]).toEqual([3, 16 - 2]);
    for (let i = 0; i < 3; i++) step();
    expect([sequence.numComputedTokens, sequence.blockTables[0]!.first, blocks.numFree]).toEqual([
      20,
      3,
      16 - 2,
    ]);
    step();
    // Token 21 sees from 16 on.
    expect([sequence.numComputedTokens, sequence.blockTables[0]!.first, blocks.numFree]).toEqual([
      21,
      4,
      16 - 2,
    ]);
  });

  test("more sequences run than would fit whole", () => {
    const { add, step, scheduler } = setUpScheduler({ ...WINDOW, numBlocks: 11, maxNumSeqs: 3 });
    const all = [0, 1, 2].map(() => add(range(0, 17), 40));
    for (let i = 0; i < 20; i++) step();
    expect(scheduler.running.size).toBe(3);
    expect(scheduler.numPreemptions).toBe(0);
    expect(all.map(({ length }) => length > 30)).toEqual([true, true, true]);
  });

  test("a prefix is a hit when what is seen after it is cached, whatever came before", () => {
    const { add, step, scheduler, blocks } = setUpScheduler({ ...WINDOW, cache: true, numBlocks: 8 });
    const first = add(range(0, 17), 1);
    step();
    scheduler.finish(first);
    // The first two blocks are needed for something else: of what was released, they were so first.
    const other = add(range(50, 22), 1);
    step();
    scheduler.finish(other);
    const cached = [0, 1, 2, 3].map(
      (i) => blocks.cache!.match(first.chain, first.tokens, i + 1, [() => i]).groups[0]!.blocks.length,
    );
    expect(cached).toEqual([0, 0, 1, 1]);
    const again = add(range(0, 17));
    const rows = step();
    // Token 16 sees from 11 on: blocks 2 and 3 are enough.
    expect(rows).toEqual([[expect.any(Number), 16, 1, true]]);
    expect(again.numCachedTokens).toBe(16);
    expect(again.blockTables[0]!.blocks.slice(0, 2)).toEqual([-1, -1]);
    // Where a block of the window is missing, it is none.
    expect(add(range(0, 12)).chain.keys).toEqual([]);
    scheduler.finish(again);
  });

  test("a preempted sequence starts anew with all of its blocks", () => {
    const { add, step, scheduler } = setUpScheduler({ ...WINDOW, numBlocks: 5, maxNumSeqs: 2 });
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

describe("groups of layers with and without a window", () => {
  const GROUPS = [{ reach: Infinity }, { reach: 6 }, { reach: 6 }];
  const MIXED = { groups: GROUPS, budget: 8 } as const;
  const held = ({ blockTables }: Sequence) => blockTables.map(({ blocks, first }) => blocks.length - first);

  test("a prompt has all of its blocks where there is no window, and elsewhere those of a window and a chunk", () => {
    const { add, step, blocks } = setUpScheduler({ ...MIXED, numBlocks: 20 });
    const sequence = add(range(0, 40), 4);
    for (let i = 0; i < 5; i++) {
      step();
      // After each chunk of 8 tokens the next one sees 5 of them, in two blocks.
      expect(held(sequence)).toEqual([10, 2, 2]);
    }
    expect(blocks.numFree).toBe(20 - 14);
    step();
    expect(held(sequence)).toEqual([11, 2, 2]);
  });

  test("a chunk is as long as there are blocks, and a sequence alone gets on by one at least", () => {
    // 6 blocks for all tokens, and 3 for what each of the others sees at a time.
    const { add, step, scheduler } = setUpScheduler({ ...MIXED, groups: GROUPS.slice(0, 2), numBlocks: 9 });
    const sequence = add(range(0, 24), 1);
    const chunks: unknown[] = [];
    while (sequence.numComputedTokens < 24) chunks.push((step() as unknown[][])[0]![2]);
    expect(chunks).toEqual([8, 4, 4, 4, 4]);
    expect(scheduler.numPreemptions).toBe(0);
  });

  test("blocks that a prompt has given back are found again, unless they were taken before it was known to be sound", () => {
    const { add, step, scheduler, blocks } = setUpScheduler({ ...MIXED, cache: true, numBlocks: 34 });
    const first = add(range(0, 24), 1);
    for (let i = 0; i < 2; i++) step();
    // Of 24 tokens 16 are computed: those seen no more have been given back, and are not to be found yet.
    expect(first.blockTables.map((table) => table.first)).toEqual([0, 2, 2]);
    const [given] = first.blockTables[1]!.blocks;
    expect(blocks.isFree(given!)).toBe(true);
    expect(blocks.cache!.size).toBe(0);
    step();
    scheduler.finish(first);
    expect(blocks.cache!.size).toBe(3 * 6);
    for (const length of [9, 13, 17]) {
      const again = add(range(0, length), 1);
      expect(step()).toEqual([[expect.any(Number), length - 1, 1, true]]);
      expect(again.numCachedTokens).toBe(length - 1);
      scheduler.finish(again);
    }
    // A hit takes the windows' blocks at its end alone.
    const part = add([...range(0, 16), 90, 91, 92], 1);
    step();
    expect(part.blockTables.map(({ blocks: { length }, first }) => length - first)).toEqual([5, 2, 2]);
    scheduler.finish(part);
  });

  test("a prefix whose window is gone is a hit as far back as one is there", () => {
    const { add, step, scheduler, blocks } = setUpScheduler({
      ...MIXED,
      cache: true,
      numBlocks: 34,
      budget: 64,
    });
    const first = add(range(0, 24), 1);
    step();
    scheduler.finish(first);
    const hit = (length: number) =>
      blocks.cache!.match(first.chain, first.tokens, length / 4, [
        () => 0,
        ...Array(2).fill((count: number) => Math.max(0, count - 2)),
      ]);
    expect(hit(24).numBlocks).toBe(6);
    blocks.cache!.evict(hit(24).groups[2]!.blocks[0]!);
    // Block 4 of the last group is missing: neither 6 nor 5 blocks are followed by a window.
    expect(hit(24)).toMatchObject({ numBlocks: 4, groups: [{ first: 0 }, { first: 2 }, { first: 2 }] });
    blocks.cache!.evict(hit(24).groups[0]!.blocks[1]!);
    expect(hit(24).numBlocks).toBe(1);
  });
});
