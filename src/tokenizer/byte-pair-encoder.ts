import { WordCache } from "./word-cache.ts";

/** Heap keys pack a merge's rank above a position; both parts and their sum stay exact in a double. */
const POSITIONS = 2 ** 30;

/** Each is a piece, or a run of them is, or they are left out. */
export type UnknownCharacters = "apart" | "fused" | "dropped";

/**
 * Byte-pair encoding of one word: merges the adjacent pair of lowest rank, leftmost first, until none is left.
 * O(n log n) in the word's length. Characters outside the vocabulary are never merged.
 */
export class BytePairEncoder {
  readonly #ids: ReadonlyMap<string, number>;
  readonly #unknown: UnknownCharacters;
  /** By rank: the ids of the pair, and of what it makes. */
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #merged: Int32Array;
  /** Open addressing with linear probing: rank + 1, or 0 where empty. At most half full. */
  readonly #table: Int32Array;
  readonly #cache = new WordCache((word) => this.#merge(word));

  /**
   * @param ids token → id, every id in [0, 2^31)
   * @param merges pairs in order of rank
   * @param unknown what becomes of characters outside the vocabulary, before anything is merged
   * @throws RangeError if a pair, or what it makes, is not in `ids`
   */
  constructor(
    ids: ReadonlyMap<string, number>,
    merges: readonly (readonly [string, string])[],
    unknown: UnknownCharacters,
  ) {
    this.#ids = ids;
    this.#unknown = unknown;
    this.#left = new Int32Array(merges.length);
    this.#right = new Int32Array(merges.length);
    this.#merged = new Int32Array(merges.length);
    this.#table = new Int32Array(2 ** Math.ceil(Math.log2(2 * merges.length + 2)));
    for (let rank = 0; rank < merges.length; rank++) {
      const left = merges[rank]![0];
      const right = merges[rank]![1];
      const a = ids.get(left);
      const b = ids.get(right);
      const merged = ids.get(left + right);
      if (a === undefined || b === undefined || merged === undefined) {
        throw new RangeError(`merge ${rank} (${JSON.stringify([left, right])}) is not in the vocabulary`);
      }
      this.#left[rank] = a;
      this.#right[rank] = b;
      this.#merged[rank] = merged;
      this.#table[this.#cell(a, b)] = rank + 1;
    }
  }

  /** The cell of the table where the pair's rank is, or would be. */
  #cell(left: number, right: number): number {
    const mask = this.#table.length - 1;
    let cell = Math.imul(Math.imul(left, 0x9e3779b1) ^ right, 0x85ebca6b);
    cell = (cell ^ (cell >>> 15)) & mask;
    for (;;) {
      const rank = this.#table[cell]! - 1;
      if (rank < 0 || (this.#left[rank] === left && this.#right[rank] === right)) return cell;
      cell = (cell + 1) & mask;
    }
  }

  /** The pieces of `word`, in order; together they are `word`, but for what is dropped. */
  split(word: string): string[] {
    return this.#cache.of(word);
  }

  /** The symbols that merging begins with. */
  #symbols(word: string): string[] {
    const symbols = Array.from(word);
    if (this.#unknown === "apart") return symbols;
    if (this.#unknown === "dropped") return symbols.filter((symbol) => this.#ids.has(symbol));
    const fused: string[] = [];
    let followsUnknown = false;
    for (const symbol of symbols) {
      const isUnknown = !this.#ids.has(symbol);
      if (isUnknown && followsUnknown) fused[fused.length - 1] += symbol;
      else fused.push(symbol);
      followsUnknown = isUnknown;
    }
    return fused;
  }

  /** Symbols form a linked list over their positions; a stale heap entry no longer has its rank at its position. */
  #merge(word: string): string[] {
    const symbols = this.#symbols(word);
    const count = symbols.length;
    const id = Int32Array.from(symbols, (symbol) => this.#ids.get(symbol) ?? -1);
    const next = Int32Array.from({ length: count }, (_, i) => i + 1);
    const previous = Int32Array.from({ length: count }, (_, i) => i - 1);
    const rankAt = (position: number): number => {
      const right = next[position]!;
      if (position < 0 || right >= count || id[position]! < 0 || id[right]! < 0) return -1;
      return this.#table[this.#cell(id[position]!, id[right]!)]! - 1;
    };

    const heap: number[] = [];
    const offer = (position: number): void => {
      const rank = rankAt(position);
      if (rank >= 0) pushHeap(heap, rank * POSITIONS + position);
    };
    for (let position = 0; position < count - 1; position++) offer(position);
    while (heap.length > 0) {
      const key = popHeap(heap);
      const position = key % POSITIONS;
      const rank = (key - position) / POSITIONS;
      if (rankAt(position) !== rank) continue;
      const absorbed = next[position]!;
      id[position] = this.#merged[rank]!;
      id[absorbed] = -1;
      next[position] = next[absorbed]!;
      if (next[position]! < count) previous[next[position]!] = position;
      offer(position);
      if (previous[position]! >= 0) offer(previous[position]!);
    }

    const pieces: string[] = [];
    for (let start = 0; start < count; start = next[start]!) {
      pieces.push(next[start] === start + 1 ? symbols[start]! : symbols.slice(start, next[start]!).join(""));
    }
    return pieces;
  }
}

function pushHeap(heap: number[], key: number): void {
  let at = heap.length;
  heap.push(key);
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (heap[parent]! <= key) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = key;
}

function popHeap(heap: number[]): number {
  const top = heap[0]!;
  const key = heap.pop()!;
  const size = heap.length;
  if (size === 0) return top;
  let at = 0;
  for (let child = 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && heap[child + 1]! < heap[child]!) child++;
    if (heap[child]! >= key) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = key;
  return top;
}
