import type { IHasher } from "hash-wasm";
import { invariant } from "../base/errors.ts";

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

/** A prefix in the cache: the blocks [first, first + blocks.length) of a sequence, before which it needs none. */
export interface PrefixHit {
  readonly first: number;
  readonly blocks: readonly number[];
}

/**
 * Computed full blocks by content. The key of a block is the SHA-256 of its parent's key and its token ids; the parent
 * of a first block is the SHA-256 of the cache salt. So a key stands for all tokens from the first on, and as nobody
 * can find two contents with one key, equal keys are equal contents: nothing else is compared. A block whose parent
 * has left the cache is not reached until the parent is computed anew, and is reused in its turn like any other.
 *
 * A key is kept as a string of 32 Latin-1 characters, one a byte: a `Map` finds strings by value (byte arrays only by
 * identity), and half as many characters as in hexadecimal digits are made, hashed and kept.
 */
export class PrefixCache {
  readonly #hasher: IHasher;
  readonly #blockSize: number;
  readonly #blocks = new Map<string, number>();
  /** [numBlocks] */
  readonly #keys: (string | undefined)[];
  /** The bytes hashed for a block: BLOCK, the parent's key, the token ids. Used for every block. */
  readonly #message: Uint8Array;
  readonly #tokens: Int32Array;
  /** The message's 32 bytes for the parent's key; every digest is read out of them. */
  readonly #digest: Buffer;

  /** @param hasher SHA-256. */
  constructor(numBlocks: number, blockSize: number, hasher: IHasher) {
    this.#hasher = hasher;
    this.#blockSize = blockSize;
    this.#keys = new Array(numBlocks).fill(undefined);
    const words = new Int32Array(1 + KEY_BYTES / 4 + blockSize);
    words[0] = BLOCK;
    this.#message = new Uint8Array(words.buffer);
    this.#tokens = words.subarray(1 + KEY_BYTES / 4);
    this.#digest = Buffer.from(words.buffer, 4, KEY_BYTES);
  }

  /** Blocks in the cache, in use or free. */
  get size(): number {
    return this.#blocks.size;
  }

  has(block: number): boolean {
    return this.#keys[block] !== undefined;
  }

  /**
   * The longest prefix of `tokens`, of at most `maxBlocks` blocks, of which all blocks are cached that are seen after it. Takes no
   * references.
   * @param firstSeen the first block that is seen after so many blocks; 0 if all are
   */
  match(
    chain: BlockChain,
    tokens: Int32Array,
    maxBlocks: number,
    firstSeen: (numBlocks: number) => number = () => 0,
  ): PrefixHit {
    const found: number[] = [];
    // The blocks from `start` on are cached, up to the one that is looked up.
    let [start, numBlocks] = [0, 0];
    while (found.length < maxBlocks) {
      const block = this.#blocks.get(this.#key(chain, found.length, tokens));
      found.push(block ?? -1);
      if (block === undefined) start = found.length;
      else if (start <= firstSeen(found.length)) numBlocks = found.length;
      // Nothing longer can be a hit.
      if (start > firstSeen(maxBlocks)) break;
    }
    const first = firstSeen(numBlocks);
    return { first, blocks: found.slice(first, numBlocks) };
  }

  /** Makes the keys of the first `numFull` blocks ahead of their publication. */
  prepare(chain: BlockChain, tokens: Int32Array, numFull: number): void {
    if (numFull > chain.keys.length) this.#key(chain, numFull - 1, tokens);
  }

  /**
   * Publishes the first `numFull` blocks of `table`, which hold `tokens` and have been computed. Content that is cached
   * already stays with the block published first.
   */
  publish(chain: BlockChain, tokens: Int32Array, table: readonly number[], numFull: number): void {
    for (; chain.numPublished < numFull; chain.numPublished++) {
      const key = this.#key(chain, chain.numPublished, tokens);
      if (this.#blocks.has(key)) continue;
      const block = table[chain.numPublished]!;
      invariant(!this.has(block), `block ${block} is already published`);
      this.#blocks.set(key, block);
      this.#keys[block] = key;
    }
  }

  /** Takes a block out, if it is in. */
  evict(block: number): void {
    const key = this.#keys[block];
    if (key === undefined) return;
    this.#blocks.delete(key);
    this.#keys[block] = undefined;
  }

  clear(): void {
    this.#blocks.clear();
    this.#keys.fill(undefined);
  }

  /** Throws `InvariantError` unless keys and blocks match one to one. */
  checkIntegrity(): void {
    let cached = 0;
    this.#keys.forEach((key, block) => {
      if (key === undefined) return;
      cached++;
      invariant(this.#blocks.get(key) === block, `block ${block} is not the one under its key`);
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
