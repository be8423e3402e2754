import type { Logprob, PositionLogprobs } from "../base/outputs.ts";

/** Log-probabilities of some positions in few values: cloning them as maps would take longer than a step. */
export interface PackedLogprobs {
  /** Of each position: the number of entries, −1 for null; then token id and rank of each. */
  readonly words: Int32Array<ArrayBuffer>;
  /** Of each entry. */
  readonly values: Float64Array<ArrayBuffer>;
  /** Tokens that this packer has not sent before, and their text. */
  readonly newIds: readonly number[];
  readonly newTexts: readonly string[];
}

type Position = PositionLogprobs | null;

/** A token's text travels once. What one packer packs must be unpacked by one unpacker, all of it, in that order. */
export class LogprobPacker {
  readonly #sent = new Set<number>();

  pack(positions: readonly Position[]): PackedLogprobs {
    let entries = 0;
    for (const position of positions) entries += position?.size ?? 0;
    const words = new Int32Array(positions.length + 2 * entries);
    const values = new Float64Array(entries);
    const newIds: number[] = [];
    const newTexts: string[] = [];
    let at = 0;
    let entry = 0;
    for (const position of positions) {
      words[at++] = position ? position.size : -1;
      position?.forEach(({ logprob, rank, decodedToken }, id) => {
        words[at++] = id;
        words[at++] = rank;
        values[entry++] = logprob;
        if (this.#sent.has(id)) return;
        this.#sent.add(id);
        newIds.push(id);
        newTexts.push(decodedToken);
      });
    }
    return { words, values, newIds, newTexts };
  }
}

export class LogprobUnpacker {
  readonly #texts = new Map<number, string>();

  unpack(packed: PackedLogprobs): Position[] {
    return this.#unpack(packed, (make) => make());
  }

  /** The same for positions that may be many: each is unpacked when it is first looked at. */
  unpackLazily(packed: PackedLogprobs): Position[] {
    return this.#unpack(packed, (make) => new LazyPosition(make));
  }

  #unpack(
    { words, values, newIds, newTexts }: PackedLogprobs,
    position: (make: () => PositionLogprobs) => PositionLogprobs,
  ): Position[] {
    for (const [i, id] of newIds.entries()) this.#texts.set(id, newTexts[i]!);
    const positions: Position[] = [];
    for (let at = 0, entry = 0; at < words.length; ) {
      const count = words[at++]!;
      const [start, firstValue] = [at, entry];
      positions.push(
        count < 0 ? null : position(() => this.#entries(words, start, values, firstValue, count)),
      );
      at += 2 * Math.max(0, count);
      entry += Math.max(0, count);
    }
    return positions;
  }

  #entries(words: Int32Array, start: number, values: Float64Array, firstValue: number, count: number) {
    const entries = new Map<number, Logprob>();
    for (let i = 0; i < count; i++) {
      const id = words[start + 2 * i]!;
      const rank = words[start + 2 * i + 1]!;
      entries.set(id, { logprob: values[firstValue + i]!, rank, decodedToken: this.#texts.get(id)! });
    }
    return entries;
  }
}

/** A map that is made when it is first read. */
class LazyPosition implements PositionLogprobs {
  #entries: PositionLogprobs | undefined;
  #make: (() => PositionLogprobs) | undefined;

  constructor(make: () => PositionLogprobs) {
    this.#make = make;
  }

  get size(): number {
    return this.#map.size;
  }

  get(id: number): Logprob | undefined {
    return this.#map.get(id);
  }

  has(id: number): boolean {
    return this.#map.has(id);
  }

  keys() {
    return this.#map.keys();
  }

  values() {
    return this.#map.values();
  }

  entries() {
    return this.#map.entries();
  }

  [Symbol.iterator]() {
    return this.#map[Symbol.iterator]();
  }

  forEach(callback: (value: Logprob, key: number, map: PositionLogprobs) => void): void {
    this.#map.forEach(callback);
  }

  get #map(): PositionLogprobs {
    this.#entries ??= this.#make!();
    this.#make = undefined;
    return this.#entries;
  }
}
