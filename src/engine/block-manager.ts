import type { IHasher } from "hash-wasm";
import { invariant } from "../base/errors.ts";
import type { SlotStates } from "../runner/types.ts";
import { PrefixCache } from "./prefix-cache.ts";
import { SnapshotPool } from "./snapshot-pool.ts";

/**
 * The KV pool: which blocks are free and how many sequences hold each of the others. A free block may still be cached;
 * such blocks are reused last, least recently released first. All operations are O(1).
 */
export class BlockManager {
  readonly numBlocks: number;
  readonly blockSize: number;
  /** The blocks by content; undefined without prefix caching. */
  readonly cache: PrefixCache | undefined;
  /** Where sequences can go on from a cached prefix; undefined without prefix caching, and if anywhere. */
  readonly snapshots: SnapshotPool | undefined;
  readonly #refCounts: Int32Array;
  /** A ring through the free blocks, next to be reused first; index `numBlocks` is its anchor. */
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  #numFree: number;

  /**
   * @param hasher SHA-256 for the prefix cache; without it nothing is cached.
   * @param states of sequences, where the model keeps any
   * @param numGroups of layers, each of which has blocks of its own in the pool
   */
  constructor(numBlocks: number, blockSize: number, hasher?: IHasher, states?: SlotStates, numGroups = 1) {
    this.numBlocks = numBlocks;
    this.blockSize = blockSize;
    this.cache = hasher && new PrefixCache(numBlocks, blockSize, hasher, numGroups);
    if (hasher && states) this.snapshots = new SnapshotPool(states.numSnapshots, states.snapshotInterval);
    this.#refCounts = new Int32Array(numBlocks);
    this.#next = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i + 1) % (numBlocks + 1));
    this.#previous = Int32Array.from({ length: numBlocks + 1 }, (_, i) => (i + numBlocks) % (numBlocks + 1));
    this.#numFree = numBlocks;
  }

  get numFree(): number {
    return this.#numFree;
  }

  /** Blocks that hold `numTokens` tokens. */
  blocksFor(numTokens: number): number {
    return Math.ceil(numTokens / this.blockSize);
  }

  isFree(block: number): boolean {
    return this.#refCounts[block] === 0;
  }

  /** Sequences that hold the block. */
  holdersOf(block: number): number {
    return this.#refCounts[block]!;
  }

  /** Takes a free block, and out of the cache what it held. */
  allocate(): number {
    invariant(this.#numFree > 0, "allocate() without a free block");
    const block = this.#next[this.numBlocks]!;
    this.cache?.evict(block);
    this.acquire(block);
    return block;
  }

  /** Adds a holder to a cached block. */
  acquire(block: number): void {
    if (this.#refCounts[block]!++ === 0) {
      this.#unlink(block);
      this.#numFree--;
    }
  }

  /** Takes one holder away. */
  release(block: number): void {
    invariant(this.#refCounts[block]! > 0, `block ${block} is released more often than it was taken`);
    if (--this.#refCounts[block]! > 0) return;
    this.#linkAfter(this.cache?.has(block) ? this.#previous[this.numBlocks]! : this.numBlocks, block);
    this.#numFree++;
  }

  /** Empties the cache. False, and nothing happens, while a block is in use. */
  resetCache(): boolean {
    if (this.#numFree < this.numBlocks) return false;
    this.cache?.clear();
    this.snapshots?.clear();
    return true;
  }

  /**
   * Throws `InvariantError` unless every reference has a holder and every block without one is free exactly once.
   * @param holders [numBlocks] how many sequences hold each block.
   * @param taken snapshots on their way
   */
  checkIntegrity(holders: Int32Array, taken: readonly number[] = []): void {
    this.snapshots?.checkIntegrity(taken);
    const free = new Set<number>();
    for (let block = this.#next[this.numBlocks]!; block !== this.numBlocks; block = this.#next[block]!) {
      invariant(!free.has(block), `block ${block} is in the free list twice`);
      invariant(this.#next[this.#previous[block]!] === block, `the free list is broken at block ${block}`);
      free.add(block);
    }
    invariant(free.size === this.#numFree, `${free.size} blocks are free, counted as ${this.#numFree}`);
    for (let block = 0; block < this.numBlocks; block++) {
      const count = this.#refCounts[block]!;
      invariant(
        count === holders[block],
        `block ${block} has ${count} references, ${holders[block]} holders`,
      );
      invariant(
        free.has(block) === (count === 0),
        `block ${block} with ${count} references: wrongly free or not`,
      );
    }
    this.cache?.checkIntegrity();
  }

  #unlink(block: number): void {
    const previous = this.#previous[block]!;
    const next = this.#next[block]!;
    this.#next[previous] = next;
    this.#previous[next] = previous;
  }

  #linkAfter(previous: number, block: number): void {
    const next = this.#next[previous]!;
    this.#next[previous] = block;
    this.#previous[block] = previous;
    this.#next[block] = next;
    this.#previous[next] = block;
  }
}
