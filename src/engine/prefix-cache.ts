import type { IHasher } from "hash-wasm";
import { invariant } from "../base/errors.ts";
import { BlockHasher } from "./block-hash.ts";

const NONE = -1;

/** One sequence's view of the cache: the keys of its full blocks and how far its prefix is published. */
export class BlockChain {
  /** Key of each full block whose tokens are known. */
  readonly keys: string[] = [];
  /** Leading blocks that are published, by this sequence or by another with the same content. */
  depth = 0;
  /** The cached block of index `depth − 1`; stale once its version has moved on. */
  tail = NONE;
  tailVersion = 0;

  constructor(readonly salt: string) {}
}

/**
 * Which blocks hold which tokens: a forest of published full blocks, found by chained key. A hit compares token ids,
 * parent and salt, so a collision of keys is a miss. A block leaves the cache together with its descendants: every
 * cached block can be reached from a root.
 */
export class PrefixCache {
  readonly #blockSize: number;
  readonly #hasher: BlockHasher;
  readonly #blocks = new Map<string, number>();
  readonly #keys: (string | undefined)[];
  readonly #salts: (string | undefined)[];
  /** [numBlocks, blockSize] */
  readonly #tokens: Int32Array;
  readonly #parent: Int32Array;
  readonly #firstChild: Int32Array;
  readonly #nextSibling: Int32Array;
  readonly #previousSibling: Int32Array;
  /** Counts how often a block left the cache. */
  readonly #version: Uint32Array;

  constructor(numBlocks: number, blockSize: number, hasher: IHasher) {
    this.#blockSize = blockSize;
    this.#hasher = new BlockHasher(hasher, blockSize);
    this.#keys = new Array(numBlocks).fill(undefined);
    this.#salts = new Array(numBlocks).fill(undefined);
    this.#tokens = new Int32Array(numBlocks * blockSize);
    this.#parent = new Int32Array(numBlocks).fill(NONE);
    this.#firstChild = new Int32Array(numBlocks).fill(NONE);
    this.#nextSibling = new Int32Array(numBlocks).fill(NONE);
    this.#previousSibling = new Int32Array(numBlocks).fill(NONE);
    this.#version = new Uint32Array(numBlocks);
  }

  /** Blocks in the cache, in use or free. */
  get size(): number {
    return this.#blocks.size;
  }

  has(block: number): boolean {
    return this.#keys[block] !== undefined;
  }

  /** The cached blocks that hold the longest prefix of `tokens`, at most `maxBlocks` of them. Takes no references. */
  match(chain: BlockChain, tokens: Int32Array, maxBlocks: number): number[] {
    const hits: number[] = [];
    for (let index = 0, parent = NONE; index < maxBlocks; index++) {
      parent = this.#find(chain, index, parent, tokens);
      if (parent === NONE) break;
      hits.push(parent);
    }
    return hits;
  }

  /** The sequence of `chain` now holds `hits`, just matched, as its first blocks. */
  adopt(chain: BlockChain, hits: readonly number[]): void {
    this.#setTail(chain, hits.length, hits.at(-1) ?? NONE);
  }

  /**
   * Publishes the first `numFull` blocks of `table`, which hold `tokens` and have been computed. Content that is cached
   * already stays with the block published first. A collision of keys ends the chain there.
   */
  publish(chain: BlockChain, tokens: Int32Array, table: readonly number[], numFull: number): void {
    if (numFull <= chain.depth) return;
    const stale = chain.tail === NONE || this.#version[chain.tail] !== chain.tailVersion;
    let index = stale ? 0 : chain.depth;
    let parent = stale ? NONE : chain.tail;
    for (; index < numFull; index++) {
      let block = this.#find(chain, index, parent, tokens);
      if (block === NONE) {
        if (this.#blocks.has(chain.keys[index]!)) break;
        block = table[index]!;
        this.#insert(block, chain, index, parent, tokens);
      }
      parent = block;
    }
    this.#setTail(chain, index, parent);
  }

  /** Takes a block and its descendants out of the cache; `orphaned` sees each descendant. */
  evict(block: number, orphaned: (block: number) => void): void {
    this.#unlink(block);
    const stack = [block];
    for (let next = stack.pop(); next !== undefined; next = stack.pop()) {
      for (let child = this.#firstChild[next]!; child !== NONE; child = this.#nextSibling[child]!)
        stack.push(child);
      this.#blocks.delete(this.#keys[next]!);
      this.#keys[next] = undefined;
      this.#salts[next] = undefined;
      this.#firstChild[next] = NONE;
      this.#version[next]!++;
      if (next !== block) orphaned(next);
    }
  }

  /** Throws `InvariantError` unless keys and blocks match one to one and every chain leads to a root. */
  checkIntegrity(): void {
    const numBlocks = this.#keys.length;
    let cached = 0;
    for (let block = 0; block < numBlocks; block++) {
      const key = this.#keys[block];
      if (key === undefined) {
        invariant(this.#firstChild[block] === NONE, `block ${block} has children but is not cached`);
        continue;
      }
      cached++;
      invariant(this.#blocks.get(key) === block, `block ${block} is not the one under its key`);
      const parent = this.#parent[block]!;
      if (parent === NONE) {
        invariant(this.#salts[block] !== undefined, `root block ${block} has no salt`);
        continue;
      }
      invariant(this.#keys[parent] !== undefined, `cached block ${block} has an uncached parent ${parent}`);
      let child = this.#firstChild[parent]!;
      while (child !== block && child !== NONE) child = this.#nextSibling[child]!;
      invariant(child === block, `block ${block} is not a child of its parent ${parent}`);
    }
    invariant(cached === this.#blocks.size, `${cached} blocks have a key, ${this.#blocks.size} are cached`);
  }

  #key(chain: BlockChain, index: number, tokens: Int32Array): string {
    const { keys } = chain;
    while (keys.length <= index) {
      const parent = keys.at(-1) ?? this.#hasher.root(chain.salt);
      keys.push(this.#hasher.block(parent, tokens, keys.length * this.#blockSize));
    }
    return keys[index]!;
  }

  #find(chain: BlockChain, index: number, parent: number, tokens: Int32Array): number {
    const block = this.#blocks.get(this.#key(chain, index, tokens));
    if (block === undefined || this.#parent[block] !== parent) return NONE;
    if (parent === NONE && this.#salts[block] !== chain.salt) return NONE;
    const start = index * this.#blockSize;
    const cached = block * this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) {
      if (this.#tokens[cached + i] !== tokens[start + i]) return NONE;
    }
    return block;
  }

  #insert(block: number, chain: BlockChain, index: number, parent: number, tokens: Int32Array): void {
    invariant(!this.has(block), `block ${block} is already published`);
    const start = index * this.#blockSize;
    const key = chain.keys[index]!;
    this.#blocks.set(key, block);
    this.#keys[block] = key;
    this.#tokens.set(tokens.subarray(start, start + this.#blockSize), block * this.#blockSize);
    this.#parent[block] = parent;
    this.#previousSibling[block] = NONE;
    if (parent === NONE) {
      this.#salts[block] = chain.salt;
      this.#nextSibling[block] = NONE;
      return;
    }
    const sibling = this.#firstChild[parent]!;
    this.#nextSibling[block] = sibling;
    if (sibling !== NONE) this.#previousSibling[sibling] = block;
    this.#firstChild[parent] = block;
  }

  #unlink(block: number): void {
    const parent = this.#parent[block]!;
    const previous = this.#previousSibling[block]!;
    const next = this.#nextSibling[block]!;
    if (previous !== NONE) this.#nextSibling[previous] = next;
    else if (parent !== NONE) this.#firstChild[parent] = next;
    if (next !== NONE) this.#previousSibling[next] = previous;
  }

  #setTail(chain: BlockChain, depth: number, tail: number): void {
    chain.depth = depth;
    chain.tail = tail;
    chain.tailVersion = tail === NONE ? 0 : this.#version[tail]!;
  }
}
