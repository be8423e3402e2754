import type { IHasher } from "hash-wasm";
import { invariant } from "../base/errors.ts";
import type { BlockTable } from "./block-table.ts";

const ROOT = 0;
const BLOCK = 1;
const KEY_BYTES = 32;

/** A sequence's way through the cache: the keys of its full blocks, made when first asked for. */
export class BlockChain {
  readonly keys: string[] = [];
  /** Leading blocks that are in the cache, or were when they were published, here or by another sequence. */
  numPublished = 0;

  constructor(readonly salt: string) {}
}

/** A prefix in the cache. */
export interface PrefixHit {
  /** Its length in blocks. */
  readonly numBlocks: number;
  /** By group of layers, the blocks [first, numBlocks): a sequence needs none before. */
  readonly groups: readonly { readonly first: number; readonly blocks: readonly number[] }[];
}

/**
 * Computed full blocks by content. The key of a block is the SHA-256 of its parent's key and its token ids; the parent
 * of a first block is the SHA-256 of the cache salt. So a key stands for all tokens from the first on, and as nobody
 * can find two contents with one key, equal keys are equal contents: nothing else is compared. A block whose parent
 * has left the cache is not reached until the parent is computed anew, and is reused in its turn like any other. Each group of
 * layers has blocks of its own under the keys.
 *
 * A sequence may give a block back before it is known whether what is in it is sound: the block is then promised to the cache, and
 * published with the others if nothing else has taken it by then.
 *
 * A key is kept as a string of 32 Latin-1 characters, one a byte: a `Map` finds strings by value (byte arrays only by
 * identity), and half as many characters as in hexadecimal digits are made, hashed and kept.
 */
export class PrefixCache {
  readonly #hasher: IHasher;
  readonly #blockSize: number;
  /** By group. */
  readonly #blocks: readonly Map<string, number>[];
  /** [numBlocks] the key that a block is cached under, and the group that it is or will be cached for. */
  readonly #keys: (string | undefined)[];
  readonly #groups: Uint8Array;
  /** [numBlocks] the sequence that has promised it, and the index in its table of that group. */
  readonly #promises: (BlockChain | undefined)[];
  readonly #indices: Int32Array;
  /** The bytes hashed for a block: BLOCK, the parent's key, the token ids. Used for every block. */
  readonly #message: Uint8Array;
  readonly #tokens: Int32Array;
  /** The message's 32 bytes for the parent's key; every digest is read out of them. */
  readonly #digest: Buffer;

  /** @param hasher SHA-256. */
  constructor(numBlocks: number, blockSize: number, hasher: IHasher, numGroups = 1) {
    this.#hasher = hasher;
    this.#blockSize = blockSize;
    this.#blocks = Array.from({ length: numGroups }, () => new Map());
    this.#keys = new Array(numBlocks).fill(undefined);
    this.#groups = new Uint8Array(numBlocks);
    this.#promises = new Array(numBlocks).fill(undefined);
    this.#indices = new Int32Array(numBlocks);
    const words = new Int32Array(1 + KEY_BYTES / 4 + blockSize);
    words[0] = BLOCK;
    this.#message = new Uint8Array(words.buffer);
    this.#tokens = words.subarray(1 + KEY_BYTES / 4);
    this.#digest = Buffer.from(words.buffer, 4, KEY_BYTES);
  }

  /** Blocks in the cache, in use or free. */
  get size(): number {
    return this.#blocks.reduce((sum, { size }) => sum + size, 0);
  }

  /** The block is in the cache, or will be. */
  has(block: number): boolean {
    return this.#keys[block] !== undefined || this.#promises[block] !== undefined;
  }

  /**
   * The longest prefix of `tokens`, of at most `maxBlocks` blocks, of which all blocks are cached, in each group, that are seen after
   * it. Takes no references.
   * @param firstSeen by group, the first block that is seen after so many blocks; 0 if all are
   */
  match(
    chain: BlockChain,
    tokens: Int32Array,
    maxBlocks: number,
    firstSeen: readonly ((numBlocks: number) => number)[] = [() => 0],
  ): PrefixHit {
    const found = firstSeen.map((): number[] => []);
    // The blocks of each group from its `starts` on are cached, up to the ones that are looked up.
    const starts = firstSeen.map(() => 0);
    const isSeen = (count: number) => firstSeen.every((first, group) => starts[group]! <= first(count));
    let numBlocks = 0;
    // Behind a missing block that is always seen nothing longer can be a hit.
    for (let i = 0; i < maxBlocks && isSeen(maxBlocks); i++) {
      const key = this.#key(chain, i, tokens);
      for (const [group, blocks] of this.#blocks.entries()) {
        const block = blocks.get(key);
        found[group]!.push(block ?? -1);
        if (block === undefined) starts[group] = i + 1;
      }
      if (isSeen(i + 1)) numBlocks = i + 1;
    }
    const groups = firstSeen.map((seen, group) => {
      const first = seen(numBlocks);
      return { first, blocks: found[group]!.slice(first, numBlocks) };
    });
    return { numBlocks, groups };
  }

  /** Makes the keys of the first `numFull` blocks ahead of their publication. */
  prepare(chain: BlockChain, tokens: Int32Array, numFull: number): void {
    if (numFull > chain.keys.length) this.#key(chain, numFull - 1, tokens);
  }

  /**
   * Publishes the first `numFull` blocks of each group's table, which hold `tokens` and have been computed, as far as the sequence still
   * has them or has promised them. Content that is cached already stays with the block published first.
   */
  publish(chain: BlockChain, tokens: Int32Array, tables: readonly BlockTable[], numFull: number): void {
    for (; chain.numPublished < numFull; chain.numPublished++) {
      const key = this.#key(chain, chain.numPublished, tokens);
      for (const [group, { blocks: table, first }] of tables.entries()) {
        const block = table[chain.numPublished]!;
        if (chain.numPublished < first && !this.withdraw(chain, group, chain.numPublished, block)) continue;
        const blocks = this.#blocks[group]!;
        if (blocks.has(key)) continue;
        invariant(!this.has(block), `block ${block} is already published`);
        blocks.set(key, block);
        this.#keys[block] = key;
        this.#groups[block] = group;
      }
    }
  }

  /** A sequence gives block `index` of one of its tables back, which it will publish if it can. */
  promise(chain: BlockChain, group: number, index: number, block: number): void {
    invariant(!this.has(block), `block ${block} is already published`);
    this.#promises[block] = chain;
    this.#groups[block] = group;
    this.#indices[block] = index;
  }

  /** Takes a promise back. False, and nothing happens, if the block has been taken by others since, or again by the same sequence. */
  withdraw(chain: BlockChain, group: number, index: number, block: number): boolean {
    const isKept = this.#promises[block] === chain && this.#groups[block] === group;
    if (!isKept || this.#indices[block] !== index) return false;
    this.#promises[block] = undefined;
    return true;
  }

  /** Takes a block out, if it is in. */
  evict(block: number): void {
    this.#promises[block] = undefined;
    const key = this.#keys[block];
    if (key === undefined) return;
    this.#blocks[this.#groups[block]!]!.delete(key);
    this.#keys[block] = undefined;
  }

  clear(): void {
    for (const blocks of this.#blocks) blocks.clear();
    this.#keys.fill(undefined);
    this.#promises.fill(undefined);
  }

  /** Throws `InvariantError` unless keys and blocks match one to one. */
  checkIntegrity(): void {
    let cached = 0;
    this.#keys.forEach((key, block) => {
      if (key === undefined) return;
      cached++;
      const blocks = this.#blocks[this.#groups[block]!]!;
      invariant(this.#promises[block] === undefined, `block ${block} is promised and published`);
      invariant(blocks.get(key) === block, `block ${block} is not the one under its key`);
    });
    invariant(cached === this.size, `${cached} blocks have a key, ${this.size} are cached`);
  }

  /** The key of block `index` of `tokens`. */
  #key({ keys, salt }: BlockChain, index: number, tokens: Int32Array): string {
    while (keys.length <= index) {
      const start = keys.length * this.#blockSize;
      this.#digest.write(keys.at(-1) ?? this.#root(salt), "latin1");
      for (let i = 0; i < this.#blockSize; i++) this.#tokens[i] = tokens[start + i]!;
      keys.push(this.#finish(this.#hasher.init().update(this.#message)));
    }
    return keys[index]!;
  }

  /** The parent of first blocks. Every part is preceded by its length, so that more parts could follow. */
  #root(salt: string): string {
    const bytes = Buffer.from(salt, "utf16le");
    return this.#finish(this.#hasher.init().update(Uint32Array.of(ROOT, bytes.length)).update(bytes));
  }

  #finish(hasher: IHasher): string {
    this.#digest.set(hasher.digest("binary"));
    return this.#digest.toString("latin1");
  }
}
