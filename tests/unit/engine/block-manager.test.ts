import { expect, setDefaultTimeout, test } from "bun:test";
import { InvariantError } from "../../../src/base/errors.ts";
import { BlockManager } from "../../../src/engine/block-manager.ts";
import { BlockChain, PrefixCache } from "../../../src/engine/prefix-cache.ts";
import { range, sha256 } from "./helpers.ts";

setDefaultTimeout(300_000);

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
    const hits = cachedBlocks(this.blocks, this.chain, this.tokens);
    for (const block of hits) this.blocks.acquire(block);
    this.chain.numPublished = hits.length;
    this.table.push(...hits);
    while (this.table.length < this.tokens.length / SIZE) this.table.push(this.blocks.allocate());
    return hits.length;
  }
  publish(numFull = this.table.length): this {
    this.blocks.cache!.publish(this.chain, this.tokens, [{ blocks: this.table, first: 0 }], numFull);
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
  return cachedBlocks(blocks, holder.chain, holder.tokens).length;
}

function cachedBlocks({ cache }: BlockManager, chain: BlockChain, tokens: Int32Array): readonly number[] {
  return cache!.match(chain, tokens, tokens.length / SIZE).groups[0]!.blocks;
}

const bytesOf = ({ buffer, byteOffset, byteLength }: NodeJS.ArrayBufferView): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

const check = (blocks: BlockManager, ...holders: Holder[]): void => {
  const counts = new Int32Array(blocks.numBlocks);
  for (const { table } of holders) for (const block of table) counts[block]!++;
  blocks.checkIntegrity(counts);
};

test("a published prefix is shared, and lives as long as one holder", () => {
  const blocks = new BlockManager(8, SIZE, sha256);
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
  const blocks = new BlockManager(7, SIZE, sha256);
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

test("salts separate equal tokens, also when they are adjacent strings", () => {
  const blocks = new BlockManager(16, SIZE, sha256);
  hold(blocks, range(0, 8), "a").publish();
  expect(hits(blocks, range(0, 8), "a")).toBe(2);
  for (const salt of [undefined, "b", "aa", "a\0", "\ud800"]) expect(hits(blocks, range(0, 8), salt)).toBe(0);
  hold(blocks, range(0, 8), "b").publish();
  expect([hits(blocks, range(0, 8), "a"), hits(blocks, range(0, 8), "b")]).toEqual([2, 2]);
  hold(blocks, range(0, 8), "\ud800").publish();
  expect(hits(blocks, range(0, 8), "\ud801")).toBe(0);
});

test("a salt that spells what is hashed for a block does not continue that block", () => {
  const cache = new PrefixCache(4, 4, sha256);
  const chain = new BlockChain("victim");
  cache.publish(chain, Int32Array.from(range(0, 12)), [{ blocks: [0, 1, 2], first: 0 }], 3);
  const second = new Uint8Array(Int32Array.from(range(4, 4)).buffer);
  const message = Buffer.concat(
    [Int32Array.of(1), Buffer.from(chain.keys[0]!, "latin1"), second].map(bytesOf),
  );
  for (const salt of [message, message.subarray(4)].map((bytes) => bytes.toString("utf16le")))
    expect(cache.match(new BlockChain(salt), Int32Array.from(range(8, 4)), 1).numBlocks).toBe(0);
});

test("a block is found again once its evicted parent has been computed anew", () => {
  const blocks = new BlockManager(5, SIZE, sha256);
  const tokens = [...range(0, 4), ...range(9, 4)];
  const first = new Holder(blocks, range(0, 4));
  const second = new Holder(blocks, tokens);
  for (const holder of [first, second]) holder.take();
  first.publish().free();
  second.publish();
  for (let i = 0; i < 3; i++) blocks.allocate();
  expect(blocks.cache!.has(second.table[1]!)).toBe(true);
  expect(hits(blocks, tokens)).toBe(0);
  second.free();
  const third = hold(blocks, range(0, 4)).publish();
  expect(hits(blocks, tokens)).toBe(2);
  expect(third.table).not.toEqual([second.table[0]!]);
});

test("equal content stays with the block published first, and later blocks hang on to it", () => {
  const blocks = new BlockManager(8, SIZE, sha256);
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

test("blocks freed too often, taken too often or cut loose are noticed", () => {
  const blocks = new BlockManager(1, SIZE, sha256);
  const block = blocks.allocate();
  expect(() => blocks.allocate()).toThrow(InvariantError);
  expect(() => blocks.checkIntegrity(new Int32Array(1))).toThrow("1 references, 0 holders");
  blocks.release(block);
  expect(() => blocks.release(block)).toThrow(InvariantError);
});

test("the cache is emptied only when nothing is in use", () => {
  const blocks = new BlockManager(4, SIZE, sha256);
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
