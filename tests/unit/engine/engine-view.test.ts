import { describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  blockOf,
  entriesOf,
  MAX_WAITING,
  RUNNING_FIELDS,
  WAITING_FIELDS,
} from "../../../src/base/engine-view.ts";
import type { Engine } from "../../../src/engine/engine.ts";
import { checkRequest } from "../../../src/engine/request.ts";
import { makeEngine, makeRequest, range } from "./helpers.ts";

setDefaultTimeout(300_000);

const add = (engine: Engine, prompt: readonly number[], maxTokens = 8) =>
  engine.add(checkRequest(makeRequest(prompt, { maxTokens }), engine.limits));
const running = (engine: Engine) => entriesOf(engine.view().running, RUNNING_FIELDS);
const blocks = (engine: Engine) => Array.from(engine.view().blocks, blockOf);

describe("a view of an engine", () => {
  test("has each sequence's progress, and its blocks under its slot", () => {
    const { engine } = makeEngine();
    add(engine, range(0, 6));
    engine.step();
    const [sequence] = running(engine);
    expect(sequence).toMatchObject({ sequence: 0, promptTokens: 6, cachedTokens: 0, computedTokens: 6 });
    expect(sequence).toMatchObject({ tokens: 7, maxTokens: 14, blocks: 2 });
    const held = blocks(engine).filter(({ holders }) => holders > 0);
    expect(held).toEqual([
      { isCached: true, holders: 1, slot: sequence!.slot, group: 0 },
      { isCached: false, holders: 1, slot: sequence!.slot, group: 0 },
    ]);
    while (engine.hasUnfinished) engine.step();
    const after = engine.view();
    expect([after.running.length, after.stats.running]).toEqual([0, 0]);
    expect(blocks(engine).filter(({ isCached }) => isCached)).toHaveLength(engine.stats().cachedBlocks);
    expect(blocks(engine).every(({ holders, slot }) => holders === 0 && slot === -1)).toBe(true);
  });

  test("shows blocks that several hold under the first, and as runs of the others", () => {
    const { engine } = makeEngine();
    add(engine, range(0, 12), 12);
    engine.step();
    add(engine, range(0, 12), 12);
    engine.step();
    const [first, second] = running(engine);
    expect(second!.cachedTokens).toBe(8);
    const shared = blocks(engine).flatMap(({ holders, slot }, block) =>
      holders === 2 ? [{ block, slot }] : [],
    );
    expect(shared.map(({ slot }) => slot)).toEqual([first!.slot, first!.slot]);
    expect([...engine.view().shared]).toEqual([1, shared[0]!.block, 2]);
  });

  test("says which group of layers a block is held for", () => {
    const { engine } = makeEngine({}, { groups: [{ reach: Infinity }, { reach: 5 }] });
    expect(engine.cacheConfig.numGroups).toBe(2);
    add(engine, range(0, 14));
    engine.step();
    const held = blocks(engine).filter(({ holders }) => holders > 0);
    // The next token, 14, sees from 10 on where there is a window.
    expect(held.map(({ group }) => group).sort()).toEqual([0, 0, 0, 0, 1, 1]);
    expect(running(engine)[0]).toMatchObject({ computedTokens: 14, blocks: 6 });
  });

  test("has the head of the queue, and says who was preempted", () => {
    const { engine } = makeEngine({ debugInvariants: false }, { numBlocks: 6 });
    add(engine, range(0, 8), 12);
    add(engine, range(3, 8), 12);
    for (let step = 0; step < 20 && engine.stats().preemptions === 0; step++) engine.step();
    expect(entriesOf(engine.view().waiting, WAITING_FIELDS)).toEqual([
      { sequence: 1, promptTokens: 8, tokens: expect.any(Number), preempted: 1 },
    ]);
    for (let i = 0; i < 2 * MAX_WAITING; i++) add(engine, range(i, 8));
    const { waiting, stats } = engine.view();
    expect(waiting.length).toBe(MAX_WAITING * WAITING_FIELDS.length);
    expect(stats.waiting).toBe(2 * MAX_WAITING + 1);
    expect(entriesOf(waiting, WAITING_FIELDS)[1]).toMatchObject({ sequence: 2, preempted: 0 });
  });
});
