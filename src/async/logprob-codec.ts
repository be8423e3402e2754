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

  unpack({ words, values, newIds, newTexts }: PackedLogprobs): Position[] {
    for (const [i, id] of newIds.entries()) this.#texts.set(id, newTexts[i]!);
    const positions: Position[] = [];
    for (let at = 0, entry = 0; at < words.length; ) {
      const count = words[at++]!;
      const position = count < 0 ? null : new Map<number, Logprob>();
      for (let i = 0; i < count; i++) {
        const id = words[at++]!;
        const rank = words[at++]!;
        position!.set(id, { logprob: values[entry++]!, rank, decodedToken: this.#texts.get(id)! });
      }
      positions.push(position);
    }
    return positions;
  }
}
