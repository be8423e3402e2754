import { expect, setDefaultTimeout, test } from "bun:test";
import fc from "fast-check";
import { BlockManager } from "../../../src/engine/block-manager.ts";
import { BlockChain, type PrefixHit } from "../../../src/engine/prefix-cache.ts";
import { sha256 } from "./helpers.ts";

setDefaultTimeout(300_000);

/** The pool as lists: the free blocks, next to be reused first, and what each cached block stands for, written out. */
class NaivePool {
  readonly free: number[];
  readonly contents: (string | undefined)[];

  constructor(numBlocks: number) {
    this.free = Array.from({ length: numBlocks }, (_, block) => block);
    this.contents = this.free.map(() => undefined);
  }
  /** Of the longest prefix whose last `seen` blocks are there, those. */
  match(contents: readonly string[], seen = Infinity): PrefixHit {
    const blocks = contents.map((content) => this.contents.indexOf(content));
    for (let end = blocks.length; end >= 0; end--) {
      const first = Math.max(0, end - seen);
      const hits = blocks.slice(first, end);
      if (!hits.includes(-1)) return { numBlocks: end, groups: [{ first, blocks: hits }] };
    }
    throw new Error("not even nothing");
  }
  acquire(block: number): void {
    const at = this.free.indexOf(block);
    if (at >= 0) this.free.splice(at, 1);
  }
  allocate(): number {
    const block = this.free.shift()!;
    this.contents[block] = undefined;
    return block;
  }
  publish(block: number, content: string): void {
    if (!this.contents.includes(content)) this.contents[block] = content;
  }
  release(block: number): void {
    if (this.contents[block] === undefined) this.free.unshift(block);
    else this.free.push(block);
  }
}

interface Sequence {
  readonly chain: BlockChain;
  readonly tokens: Int32Array;
  readonly table: number[];
  /** What each full block stands for: the salt and all tokens from the first on. */
  readonly contents: readonly string[];
}

const start = fc.record({
  type: fc.constant("start" as const),
  salt: fc.constantFrom("", "a", "b", "ab", "\0"),
  tokens: fc.array(fc.nat(1), { maxLength: 12 }),
});
const publish = fc.record({ type: fc.constant("publish" as const), pick: fc.nat(), blocks: fc.nat(8) });
const end = fc.record({ type: fc.constant("end" as const), pick: fc.nat() });
const reset = fc.record({ type: fc.constant("reset" as const) });
const commands = fc.array(
  fc.oneof(
    { weight: 6, arbitrary: start },
    { weight: 6, arbitrary: publish },
    { weight: 4, arbitrary: end },
    reset,
  ),
  { maxLength: 60, size: "max" },
);

test("finds the longest prefix of one salt that is held, and reuses the least recently freed block first", () => {
  const property = fc.property(
    fc.integer({ min: 2, max: 10 }),
    fc.integer({ min: 1, max: 3 }),
    commands,
    (...args) => {
      const [numBlocks, blockSize, list] = args;
      const pool = new BlockManager(numBlocks, blockSize, sha256);
      const cache = pool.cache!;
      const naive = new NaivePool(numBlocks);
      const sequences: Sequence[] = [];
      for (const command of list) {
        const at = "pick" in command ? command.pick % Math.max(1, sequences.length) : 0;
        const sequence = sequences[at];
        if (command.type === "start") {
          const tokens = Int32Array.from(command.tokens);
          const contents = Array.from({ length: Math.floor(tokens.length / blockSize) }, (_, i) =>
            JSON.stringify([command.salt, ...tokens.subarray(0, (i + 1) * blockSize)]),
          );
          const started = { chain: new BlockChain(command.salt), tokens, table: [] as number[], contents };
          for (const seen of [1, 2, 3]) {
            const firstSeen = (count: number) => Math.max(0, count - seen);
            const windowed = cache.match(new BlockChain(command.salt), tokens, contents.length, [firstSeen]);
            expect(windowed).toEqual(naive.match(contents, seen));
          }
          const hit = cache.match(started.chain, tokens, contents.length);
          expect(hit).toEqual(naive.match(contents));
          const hits = hit.groups[0]!.blocks;
          for (const block of hits) {
            pool.acquire(block);
            naive.acquire(block);
          }
          started.table.push(...hits);
          started.chain.numPublished = hits.length;
          while (started.table.length < contents.length && pool.numFree > 0) {
            const block = pool.allocate();
            expect(block).toBe(naive.allocate());
            started.table.push(block);
          }
          sequences.push(started);
        } else if (command.type === "publish" && sequence) {
          const numFull = Math.min(command.blocks, sequence.table.length);
          for (let i = sequence.chain.numPublished; i < numFull; i++)
            naive.publish(sequence.table[i]!, sequence.contents[i]!);
          const tables = [{ blocks: sequence.table, first: 0 }];
          cache.publish(sequence.chain, sequence.tokens, tables, numFull);
        } else if (command.type === "end" && sequence) {
          sequences.splice(at, 1);
          for (const block of sequence.table.reverse()) {
            pool.release(block);
            const held = sequences.some(({ table }) => table.includes(block));
            if (!held) naive.release(block);
          }
        } else if (command.type === "reset") {
          const idle = sequences.every(({ table }) => table.length === 0);
          expect(pool.resetCache()).toBe(idle);
          if (idle) naive.contents.fill(undefined);
        }
        const holders = new Int32Array(numBlocks);
        for (const { table } of sequences) for (const block of table) holders[block]!++;
        pool.checkIntegrity(holders);
        expect(pool.numFree).toBe(naive.free.length);
        expect(holders.map((_, block) => Number(cache.has(block)))).toEqual(
          holders.map((_, block) => Number(naive.contents[block] !== undefined)),
        );
      }
    },
  );
  fc.assert(property, { numRuns: 500 });
});

test("a key is the SHA-256 of a tag, the parent's key and the tokens; the first parent's, of a tag and the salt", () => {
  const hash = (...parts: Parameters<Bun.CryptoHasher["update"]>[0][]) => {
    const hasher = new Bun.CryptoHasher("sha256");
    for (const part of parts) hasher.update(part);
    return hasher.digest();
  };
  const tokens = Int32Array.of(7, -1, 2 ** 31 - 1, 0);
  const chain = new BlockChain("a\u00e9\ud800");
  new BlockManager(4, 2, sha256).cache!.match(chain, tokens, 1);
  const root = hash(Uint32Array.of(0, 6), Uint16Array.of(0x61, 0xe9, 0xd800));
  expect(chain.keys).toEqual([hash(Uint32Array.of(1), root, tokens.subarray(0, 2)).toString("latin1")]);
});
