import type { IHasher } from "hash-wasm";

const ROOT = 0;
const BLOCK = 1;
const KEY_LENGTH = 32;
const TOKENS_AT = 8 + KEY_LENGTH + 4;

/**
 * Chained keys of full blocks: xxHash128 over the parent's key and the block's token ids; the root covers the cache
 * salt. Every field is tagged or preceded by its length, so no two kinds of input share an encoding.
 */
export class BlockHasher {
  readonly #hasher: IHasher;
  readonly #blockSize: number;
  readonly #message: Uint8Array;
  readonly #words: Int32Array;
  readonly #encoder = new TextEncoder();

  /** @param hasher xxHash128; its digest has 32 hexadecimal digits. */
  constructor(hasher: IHasher, blockSize: number) {
    this.#hasher = hasher;
    this.#blockSize = blockSize;
    this.#message = new Uint8Array(TOKENS_AT + 4 * blockSize);
    this.#words = new Int32Array(this.#message.buffer);
  }

  /** The parent key of a first block. */
  root(salt: string): string {
    const bytes = this.#encoder.encode(salt);
    return this.#hasher.init().update(Uint32Array.of(ROOT, bytes.length)).update(bytes).digest();
  }

  /** The key of the block that holds `tokens[start, start + blockSize)`. */
  block(parent: string, tokens: Int32Array, start: number): string {
    const words = this.#words;
    words[0] = BLOCK;
    words[1] = KEY_LENGTH;
    this.#encoder.encodeInto(parent, this.#message.subarray(8, 8 + KEY_LENGTH));
    words[TOKENS_AT / 4 - 1] = this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) words[TOKENS_AT / 4 + i] = tokens[start + i]!;
    return this.#hasher.init().update(this.#message).digest();
  }
}
