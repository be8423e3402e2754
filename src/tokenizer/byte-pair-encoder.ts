/** Heap keys pack a merge's rank above a position; both parts and their sum stay exact in a double. */
const POSITIONS = 2 ** 30;
const CACHED_WORDS = 10_000;
const CACHED_WORD_LENGTH = 64;
const encoder = new TextEncoder();

export interface BytePairOptions {
  /** What stands for a character that the vocabulary lacks; without one the character is dropped. */
  readonly unknownId?: number | undefined;
  /** One such token for a run of such characters. Default false. */
  readonly fuseUnknown?: boolean;
  /** Spell such a character with tokens of its bytes, `<0xNN>`, if they are all there. Default false. */
  readonly byteFallback?: boolean;
  /** A word that is a token is that token, whether merges lead there or not. Default false. */
  readonly ignoreMerges?: boolean;
}

/**
 * Byte-pair encoding of one word: merges the adjacent pair of lowest rank, leftmost first, until none is left.
 * O(n log n) in the word's length.
 */
export class BytePairEncoder {
  readonly #ids: ReadonlyMap<string, number>;
  readonly #options: BytePairOptions;
  /** By byte, with `byteFallback`: its token. */
  readonly #byteIds: readonly (number | undefined)[];
  /** By rank: the ids of the pair, and of what it makes. */
  readonly #left: Int32Array;
  readonly #right: Int32Array;
  readonly #merged: Int32Array;
  /** Open addressing with linear probing: rank + 1, or 0 where empty. At most half full. */
  readonly #table: Int32Array;
  readonly #cache = new Map<string, readonly number[]>();

  /**
   * @param ids token → id, every id in [0, 2^31)
   * @param merges pairs in order of rank
   * @throws RangeError if a pair, or what it makes, is not in `ids`
   */
  constructor(
    ids: ReadonlyMap<string, number>,
    merges: readonly (readonly [string, string])[],
    options: BytePairOptions = {},
  ) {
    this.#ids = ids;
    this.#options = options;
    this.#byteIds = Array.from({ length: options.byteFallback ? 256 : 0 }, (_, byte) =>
      ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
    );
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

  /** Where the pair's rank is, or would be, in the table. */
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

  /** Appends the ids of `word` to `output`. */
  encode(word: string, output: number[]): void {
    let ids = this.#cache.get(word);
    if (ids === undefined) {
      const whole = this.#options.ignoreMerges ? this.#ids.get(word) : undefined;
      ids = whole === undefined ? this.#merge(this.#symbols(word)) : [whole];
      if (word.length <= CACHED_WORD_LENGTH) {
        if (this.#cache.size >= CACHED_WORDS) this.#cache.clear();
        this.#cache.set(word, ids);
      }
    }
    for (const id of ids) output.push(id);
  }

  /** The ids of the word's characters before any merge. */
  #symbols(word: string): Int32Array {
    const { unknownId, fuseUnknown } = this.#options;
    const symbols: number[] = [];
    /** An unknown character waits for the next known one, so that more may join it. */
    let waits = false;
    for (const character of word) {
      const id = this.#ids.get(character);
      if (id !== undefined) {
        if (waits) symbols.push(unknownId!);
        waits = false;
        symbols.push(id);
        continue;
      }
      const bytes = this.#bytes(character);
      if (bytes !== undefined) symbols.push(...bytes);
      else if (unknownId !== undefined) {
        if (waits && !fuseUnknown) symbols.push(unknownId);
        waits = true;
      }
    }
    if (waits) symbols.push(unknownId!);
    return Int32Array.from(symbols);
  }

  #bytes(character: string): number[] | undefined {
    if (!this.#options.byteFallback) return undefined;
    const ids: number[] = [];
    for (const byte of encoder.encode(character)) {
      const id = this.#byteIds[byte];
      if (id === undefined) return undefined;
      ids.push(id);
    }
    return ids;
  }

  /** Symbols form a linked list over their positions; a stale heap entry no longer has its rank at its position. */
  #merge(id: Int32Array): number[] {
    const count = id.length;
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

    const ids: number[] = [];
    for (let start = 0; start < count; start = next[start]!) ids.push(id[start]!);
    return ids;
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
