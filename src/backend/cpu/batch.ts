import { invariant } from "../../base/errors.ts";
import { COUNT_IN_PROMPT } from "../backend.ts";

/** What prepareBatch fills; see `BatchTensors`. */
export interface TokenMetadata {
  readonly tokenIds: Int32Array;
  readonly positions: Int32Array;
  readonly slotMapping: Int32Array;
  readonly cuSeqlensQ: Int32Array;
  readonly contextLens: Int32Array;
  readonly rowSlots: Int32Array;
}

/** The slots' tokens [S, capacity] and block tables [S, maxBlocks]. */
export interface SlotHistory {
  readonly tokens: Int32Array;
  readonly capacity: number;
  readonly blockTables: Int32Array;
  readonly maxBlocks: number;
  readonly blockSize: number;
}

/** See `Backend.prepareBatch`; `rows` holds slot, first position and token count of each row. */
export function prepareBatch(out: TokenMetadata, rows: Int32Array, slots: SlotHistory): void {
  const { capacity, maxBlocks, blockSize } = slots;
  const limit = Math.min(capacity, maxBlocks * blockSize);
  let t = 0;
  out.cuSeqlensQ[0] = 0;
  for (let row = 0; row < out.contextLens.length; row++) {
    const slot = rows[3 * row]!;
    const first = rows[3 * row + 1]!;
    const end = first + rows[3 * row + 2]!;
    invariant(0 <= first && end <= limit, `prepareBatch: row ${row} spans [${first}, ${end}) of ${limit}`);
    for (let position = first; position < end; position++, t++) {
      const block = slots.blockTables[slot * maxBlocks + Math.floor(position / blockSize)]!;
      out.tokenIds[t] = slots.tokens[slot * capacity + position]!;
      out.positions[t] = position;
      out.slotMapping[t] = block * blockSize + (position % blockSize);
    }
    out.cuSeqlensQ[row + 1] = t;
    out.contextLens[row] = end;
    out.rowSlots[row] = slot;
  }
  invariant(
    t === out.tokenIds.length,
    `prepareBatch: rows hold ${t} tokens, the batch ${out.tokenIds.length}`,
  );
}

/** target[indices[i]] = values[i], as raw words. */
export function scatter(target: Uint32Array, indices: Int32Array, values: Uint32Array): void {
  for (let i = 0; i < indices.length; i++) {
    const index = indices[i]!;
    invariant(0 <= index && index < target.length, `scatter: index ${index} of ${target.length}`);
    target[index] = values[i]!;
  }
}

/** out[i, :] = table[ids[i], :], rows of `width`. Serves embedding and gatherRows. */
export function gather(
  op: string,
  out: Float32Array,
  table: Float32Array,
  ids: Int32Array,
  width: number,
): void {
  const count = table.length / width;
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    invariant(0 <= id && id < count, `${op}: index ${id} of ${count}`);
    out.set(table.subarray(id * width, (id + 1) * width), i * width);
  }
}

/** See `Backend.countTokens`; `rows` holds slot, prompt length and total length. */
export function countTokens(
  counts: Uint32Array,
  vocab: number,
  tokens: Int32Array,
  capacity: number,
  rows: Int32Array,
): void {
  for (let row = 0; row < rows.length; row += 3) {
    const [slot, promptLen, totalLen] = [rows[row]!, rows[row + 1]!, rows[row + 2]!];
    invariant(
      promptLen <= totalLen && totalLen <= capacity,
      `countTokens: ${promptLen}, ${totalLen} of ${capacity}`,
    );
    const slotCounts = counts.subarray(slot * vocab, (slot + 1) * vocab).fill(0);
    for (let i = 0; i < totalLen; i++) {
      const token = tokens[slot * capacity + i]!;
      if (i < promptLen) slotCounts[token]! |= COUNT_IN_PROMPT;
      else slotCounts[token]!++;
    }
  }
}
