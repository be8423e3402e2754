import { invariant } from "../base/errors.ts";
import type { PrefixHit } from "./prefix-cache.ts";

/** A cached prefix that a sequence can go on from. */
export interface StateHit extends PrefixHit {
  /** The place of its state there; undefined: it begins at its first token. */
  readonly snapshot?: number | undefined;
  /** Positions, ascending, at which its own state is to be kept. */
  readonly borders: readonly number[];
}

/**
 * The places for sequences' states at borders, some blocks apart, that prompts which begin alike can go on from. By the key of the
 * block before the border, least recently used first. A place is free, taken by a sequence whose state is on its way there, or
 * published.
 */
export class SnapshotPool {
  readonly #places = new Map<string, number>();
  readonly #free: number[];

  /**
   * @param count places
   * @param interval tokens from one border to the next: whole blocks
   */
  constructor(
    readonly count: number,
    readonly interval: number,
  ) {
    this.#free = Array.from({ length: count }, (_, i) => count - 1 - i);
  }

  /**
   * The part of a cached prefix at whose end a state is known. A sequence then keeps its own at the last border of its tokens, from which
   * a longer prompt goes on, and at the last border of what it has in common with others, if none has a state there: the next one with
   * that prefix finds it.
   * @param hit blocks from the first on
   * @param keys of the sequence's blocks, those of the hit at least
   * @param length of the sequence
   */
  resume(
    { numBlocks, groups }: PrefixHit,
    keys: readonly string[],
    length: number,
    blockSize: number,
  ): StateHit {
    const perBorder = this.interval / blockSize;
    invariant(
      groups.every(({ first }) => first === 0),
      "a prefix with a state is cut within a window",
    );
    const common = numBlocks - (numBlocks % perBorder);
    let count = common;
    let snapshot: number | undefined;
    for (; count > 0; count -= perBorder) {
      snapshot = this.find(keys[count - 1]!);
      if (snapshot !== undefined) break;
    }
    const last = length - 1 - ((length - 1) % this.interval);
    const borders = [...new Set([common * blockSize, last])].filter((border) => border > count * blockSize);
    const cut = groups.map(({ first, blocks }) => ({ first, blocks: blocks.slice(0, count) }));
    return { numBlocks: count, groups: cut, snapshot, borders };
  }

  /** The place of the state after the block of that key, which is now the most recently used; undefined: there is none. */
  find(key: string): number | undefined {
    const place = this.#places.get(key);
    if (place === undefined) return undefined;
    this.#places.delete(key);
    this.#places.set(key, place);
    return place;
  }

  /** A place to keep a state in: a free one, or that of the state used least recently. Undefined while all are taken. */
  take(): number | undefined {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    const [oldest] = this.#places;
    if (oldest === undefined) return undefined;
    this.#places.delete(oldest[0]);
    return oldest[1];
  }

  /** A place that was taken has the state after the block of that key; it is free again if there is one already. */
  publish(key: string, place: number): void {
    if (this.find(key) === undefined) this.#places.set(key, place);
    else this.release(place);
  }

  /** A place that was taken will not be needed. */
  release(place: number): void {
    this.#free.push(place);
  }

  clear(): void {
    this.#free.push(...this.#places.values());
    this.#places.clear();
  }

  /** Throws `InvariantError` unless each place is free, published or one of those taken, and only that. */
  checkIntegrity(taken: readonly number[]): void {
    const all = [...this.#free, ...this.#places.values(), ...taken];
    invariant(all.length === this.count, `${all.length} snapshots of ${this.count} are accounted for`);
    invariant(new Set(all).size === this.count, "a snapshot is in two places");
  }
}
