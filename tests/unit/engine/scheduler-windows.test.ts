import { describe, expect, setDefaultTimeout, test } from "bun:test";
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
