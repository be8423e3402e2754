import { expect, test } from "bun:test";
import { InvariantError } from "../../../src/base/errors.ts";
import { BlockManager } from "../../../src/engine/block-manager.ts";
import { BlockChain } from "../../../src/engine/prefix-cache.ts";
import { constantHasher, range, xxHash128 } from "./helpers.ts";

const SIZE = 4;

class Holder {
  readonly chain: BlockChain;
  readonly tokens: Int32Array;
  readonly table: number[] = [];

  constructor(
    readonly blocks: BlockManager,
    tokens: number[],
    salt = "",
  ) {
    this.chain = new BlockChain(salt);
    this.tokens = Int32Array.from(tokens);
  }
  /** Takes what is cached and allocates the rest; how many blocks were cached. */
  take(): number {
    const hits = this.blocks.cache!.match(this.chain, this.tokens, this.tokens.length / SIZE);
    for (const block of hits) this.blocks.acquire(block);
    this.blocks.cache!.adopt(this.chain, hits);
    this.table.push(...hits);
    while (this.table.length < this.tokens.length / SIZE) this.table.push(this.blocks.allocate());
    return hits.length;
  }
  publish(numFull = this.table.length): this {
    this.blocks.cache!.publish(this.chain, this.tokens, this.table, numFull);
    return this;
  }
  free(): this {
    for (const block of this.table.splice(0).reverse()) this.blocks.release(block);
    return this;
  }
}

function hold(blocks: BlockManager, tokens: number[], salt?: string): Holder {
  const holder = new Holder(blocks, tokens, salt);
  holder.take();
  return holder;
}

function hits(blocks: BlockManager, tokens: number[], salt?: string): number {
  const holder = new Holder(blocks, tokens, salt);
  return blocks.cache!.match(holder.chain, holder.tokens, tokens.length / SIZE).length;
}

const check = (blocks: BlockManager, ...holders: Holder[]): void => {
  const counts = new Int32Array(blocks.numBlocks);
  for (const { table } of holders) for (const block of table) counts[block]!++;
  blocks.checkIntegrity(counts);
};

test("a published prefix is shared, and lives as long as one holder", () => {
  const blocks = new BlockManager(8, SIZE, xxHash128);
  const first = hold(blocks, range(0, 12));
  expect(hits(blocks, range(0, 12))).toBe(0);
  first.publish(2);
  const second = hold(blocks, [...range(0, 8), 9, 9, 9, 9]);
  expect(second.table.slice(0, 2)).toEqual(first.table.slice(0, 2));
  expect(blocks.numFree).toBe(8 - 4);
  check(blocks, first, second);
  first.free();
  expect(blocks.isFree(second.table[0]!)).toBe(false);
  check(blocks, second);
  second.free();
  expect(blocks.numFree).toBe(8);
  expect(hits(blocks, range(0, 8))).toBe(2);
  check(blocks);
});

test("blocks that hold nothing are reused first, then the least recently freed, ends before beginnings", () => {
  const blocks = new BlockManager(7, SIZE, xxHash128);
  const old = hold(blocks, range(0, 8)).publish().free();
  hold(blocks, range(5, 8)).publish().free();
  hold(blocks, range(10, 8)).free();
  hold(blocks, range(2, 12));
  expect([hits(blocks, range(0, 8)), hits(blocks, range(5, 8))]).toEqual([2, 2]);
  blocks.allocate();
  expect([hits(blocks, range(0, 8)), hits(blocks, range(5, 8))]).toEqual([1, 2]);
  old.take();
  expect(hits(blocks, range(5, 8))).toBe(1);
});

test("with all keys equal, nothing but the same tokens, parent and salt is found", () => {
  const blocks = new BlockManager(16, SIZE, constantHasher);
  hold(blocks, range(0, 4)).publish();
  expect(hits(blocks, range(0, 4))).toBe(1);
  expect(hits(blocks, range(1, 4))).toBe(0);
  expect(hits(blocks, range(0, 4), "salt")).toBe(0);
  expect(hits(blocks, [...range(0, 4), ...range(0, 4)])).toBe(1);
  hold(blocks, range(8, 8)).publish();
  expect(blocks.cache!.size).toBe(1);
  expect(hits(blocks, range(8, 8))).toBe(0);
});

test("salts separate equal tokens, also when they are adjacent strings", () => {
  const blocks = new BlockManager(16, SIZE, xxHash128);
  hold(blocks, range(0, 8), "a").publish();
  expect(hits(blocks, range(0, 8), "a")).toBe(2);
  for (const salt of [undefined, "b", "aa", "a\0"]) expect(hits(blocks, range(0, 8), salt)).toBe(0);
  hold(blocks, range(0, 8), "b").publish();
  expect([hits(blocks, range(0, 8), "a"), hits(blocks, range(0, 8), "b")]).toEqual([2, 2]);
});

test("equal content stays with the block published first, and later blocks hang on to it", () => {
  const blocks = new BlockManager(8, SIZE, xxHash128);
  const first = new Holder(blocks, range(0, 8));
  const second = new Holder(blocks, [...range(0, 4), ...range(9, 4)]);
  for (const holder of [first, second]) holder.take();
  first.publish();
  second.publish();
  expect(blocks.cache!.size).toBe(3);
  expect(hold(blocks, range(0, 4)).table).toEqual([first.table[0]!]);
  expect(hits(blocks, [...range(0, 4), ...range(9, 4)])).toBe(2);
  expect(blocks.cache!.has(second.table[0]!)).toBe(false);
});

test("an evicted block takes its descendants out of the cache, and its content can be published again", () => {
  const blocks = new BlockManager(5, SIZE, xxHash128);
  const first = new Holder(blocks, range(0, 4));
  const second = new Holder(blocks, [...range(0, 4), ...range(9, 8)]);
  for (const holder of [first, second]) holder.take();
  first.publish().free();
  second.publish(2);
  const child = second.table[1]!;
  expect(blocks.cache!.has(child)).toBe(true);
  const others = [blocks.allocate(), blocks.allocate()];
  expect(blocks.cache!.has(child)).toBe(false);
  for (const block of others) blocks.release(block);
  second.publish(3);
  expect(second.chain.depth).toBe(3);
  expect(hits(blocks, [...range(0, 4), ...range(9, 8)])).toBe(3);
  check(blocks, second);
});

test("blocks freed too often, taken too often or cut loose are noticed", () => {
  const blocks = new BlockManager(1, SIZE, xxHash128);
  const block = blocks.allocate();
  expect(() => blocks.allocate()).toThrow(InvariantError);
  expect(() => blocks.checkIntegrity(new Int32Array(1))).toThrow("1 references, 0 holders");
  blocks.release(block);
  expect(() => blocks.release(block)).toThrow(InvariantError);
});

test("the cache is emptied only when nothing is in use", () => {
  const blocks = new BlockManager(4, SIZE, xxHash128);
  const holder = hold(blocks, range(0, 8)).publish();
  expect(blocks.resetCache()).toBe(false);
  expect(blocks.cache!.size).toBe(2);
  holder.free();
  expect(blocks.resetCache()).toBe(true);
  expect(hits(blocks, range(0, 8))).toBe(0);
  check(blocks);
});

test("without a hasher there is no cache", () => {
  expect(new BlockManager(4, SIZE).cache).toBeUndefined();
});
