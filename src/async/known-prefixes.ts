import type { EngineRequest } from "../engine/request.ts";

/**
 * Keys of a prompt's full blocks of `blockSize` tokens, first to last: each is a hash of the one before and the block's
 * token ids, and the first begins with the cache salt. Quick 64-bit hashes that could collide: for guesses only.
 */
export function blockKeys(
  { promptTokenIds, cacheSalt }: Pick<EngineRequest, "promptTokenIds" | "cacheSalt">,
  blockSize: number,
): readonly bigint[] {
  const { buffer, byteOffset, byteLength } = promptTokenIds;
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  const step = blockSize * promptTokenIds.BYTES_PER_ELEMENT;
  const keys: bigint[] = [];
  let key = Bun.hash.wyhash(cacheSalt);
  for (let end = step; end <= byteLength; end += step) {
    key = Bun.hash.wyhash(bytes.subarray(end - step, end), key);
    keys.push(key);
  }
  return keys;
}

/**
 * The blocks that an engine's prefix cache probably holds, judged by the prompts that it was given: as many as the cache has
 * room for, the least recently given forgotten first, a prompt's last blocks before its first.
 */
export class KnownPrefixes {
  /** Least recently given first. */
  readonly #keys = new Set<bigint>();

  /** @param capacity blocks; 0: there is no cache. */
  constructor(readonly capacity: number) {}

  /** Number of blocks. */
  get size(): number {
    return this.#keys.size;
  }

  /** Number of leading blocks that are known. */
  match(keys: readonly bigint[]): number {
    let count = 0;
    while (count < keys.length && this.#keys.has(keys[count]!)) count++;
    return count;
  }

  /** The engine has been given a prompt of these blocks. */
  learn(keys: readonly bigint[]): void {
    for (let i = keys.length - 1; i >= 0; i--) {
      this.#keys.delete(keys[i]!);
      this.#keys.add(keys[i]!);
    }
    for (const key of this.#keys) {
      if (this.#keys.size <= this.capacity) return;
      this.#keys.delete(key);
    }
  }

  clear(): void {
    this.#keys.clear();
  }
}
