import { invariant } from "../../base/errors.ts";
import { JOIN_WORDS, JoinWord } from "../backend.ts";
import { RowWord, rowWords } from "../row-words.ts";
import { type HostSlots, Slot } from "./slots.ts";

/** The arrays of `BatchTensors`. */
export interface BatchMetadata extends StepMetadata {
  readonly slotMapping: Int32Array;
}

/** Those that all groups of layers have in common. */
export interface StepMetadata {
  readonly tokenIds: Int32Array;
  readonly positions: Int32Array;
  readonly cuSeqlensQ: Int32Array;
  readonly contextLens: Int32Array;
  readonly rowSlots: Int32Array;
}

/** See `SampleRows`. */
export interface SampleMetadata extends DrawnSamples {
  readonly tokenIndices: Int32Array;
}

/** What drawing needs to know of its rows; see `SampleRows`. */
export interface DrawnSamples {
  readonly slots: Int32Array;
  readonly positions: Int32Array;
}

/** The slots' sequences, tokens [S, capacity], and block tables [G, S, maxBlocks]. */
export type PagedSlots = Pick<
  HostSlots,
  "tokens" | "lengths" | "numComputedTokens" | "slots" | "capacity"
> & {
  readonly blockTables: Int32Array;
  readonly groups: number;
  readonly maxBlocks: number;
  readonly blockSize: number;
};

/** See `StepBatch.slotMappings`. */
export interface SlotMappings {
  readonly slotMappings: Int32Array;
  /** Words from one group's to the next one's. */
  readonly mappingStride: number;
}

/** Slot mapping of tokens of no row. */
export const PADDING = -1;

/** See `Backend.joinSlots`. */
export function joinSlots(slots: HostSlots, joins: Int32Array): void {
  for (let at = 0; at < joins.length; at += JOIN_WORDS) {
    const word = (name: keyof typeof JoinWord) => joins[at + JoinWord[name]]!;
    new Slot(slots, word("slot")).join(word("promptLength"), word("length"), word("numComputedTokens"));
  }
}

/** See `Backend.prepareBatch`. */
export function prepareBatch(
  out: StepMetadata & SlotMappings,
  samples: SampleMetadata,
  rows: Int32Array,
  slots: PagedSlots,
): void {
  const { capacity, groups, maxBlocks, blockSize, lengths, numComputedTokens } = slots;
  const limit = Math.min(capacity, maxBlocks * blockSize);
  let t = 0;
  out.cuSeqlensQ[0] = 0;
  for (let row = 0; row < out.contextLens.length; row++) {
    const record = rowWords(groups) * row;
    const word = (name: keyof typeof RowWord) => rows[record + RowWord[name]]!;
    const slot = word("slot");
    invariant(0 <= slot && slot < slots.slots, `prepareBatch: row ${row} of slot ${slot} of ${slots.slots}`);
    const start = numComputedTokens[slot]!;
    const end = start + word("count");
    invariant(start < end && end <= limit, `prepareBatch: row ${row} spans [${start}, ${end}) of ${limit}`);
    if (lengths[slot]! > 0) numComputedTokens[slot] = end;
    const index = word("blockIndex");
    invariant(index < maxBlocks, `prepareBatch: row ${row} brings block ${index} of ${maxBlocks}`);
    for (let group = 0; group < groups; group++) {
      const table = slots.blockTables.subarray((group * slots.slots + slot) * maxBlocks);
      const brought = rows[record + RowWord.block + group]!;
      if (index >= 0 && brought >= 0) table[index] = brought;
      const mapping = out.slotMappings.subarray(group * out.mappingStride + t);
      for (let position = start; position < end; position++)
        mapping[position - start] =
          table[Math.floor(position / blockSize)]! * blockSize + (position % blockSize);
    }
    for (let position = start; position < end; position++, t++) {
      out.tokenIds[t] = slots.tokens[slot * capacity + position]!;
      out.positions[t] = position;
    }
    out.cuSeqlensQ[row + 1] = t;
    out.contextLens[row] = end;
    out.rowSlots[row] = slot;
    const sample = word("sample");
    if (sample < 0) continue;
    invariant(sample < samples.slots.length, `prepareBatch: sample ${sample} of ${samples.slots.length}`);
    samples.slots[sample] = slot;
    samples.positions[sample] = end - 1;
    samples.tokenIndices[sample] = t - 1;
  }
  invariant(
    t <= out.tokenIds.length,
    `prepareBatch: rows hold ${t} tokens, the batch ${out.tokenIds.length}`,
  );
  out.tokenIds.fill(0, t);
  out.positions.fill(0, t);
  for (let group = 0; group < groups; group++) {
    const start = group * out.mappingStride;
    out.slotMappings.fill(PADDING, start + t, start + out.tokenIds.length);
  }
}

/** target[indices[i]] = values[i], as raw words. */
export function scatter(target: Uint32Array, indices: Int32Array, values: Uint32Array): void {
  for (let i = 0; i < indices.length; i++) {
    const index = indices[i]!;
    invariant(0 <= index && index < target.length, `scatter: index ${index} of ${target.length}`);
    target[index] = values[i]!;
  }
}

/** Rows of a table of embeddings, as float32. */
export interface EmbeddingTable {
  readonly rows: number;
  /** Writes one row. */
  read(target: Float32Array, row: number): void;
}

/**
 * out[i, :] = table[ids[i] − firstId, :], rows of `width`; zeros for ids that the table does not have. Without `firstId` it has all.
 */
export function embed(
  out: Float32Array,
  table: EmbeddingTable,
  ids: Int32Array,
  width: number,
  firstId?: number,
): void {
  for (let i = 0; i < ids.length; i++) {
    const row = ids[i]! - (firstId ?? 0);
    const target = out.subarray(i * width, (i + 1) * width);
    if (0 <= row && row < table.rows) table.read(target, row);
    else {
      invariant(firstId !== undefined, `embedding: index ${row} of ${table.rows}`);
      target.fill(0);
    }
  }
}

/** out[i, :] = table[ids[i], :], rows of `width`. */
export function gather(out: Float32Array, table: Float32Array, ids: Int32Array, width: number): void {
  const count = table.length / width;
  for (let i = 0; i < ids.length; i++) {
    const id = ids[i]!;
    invariant(0 <= id && id < count, `gatherRows: index ${id} of ${count}`);
    out.set(table.subarray(id * width, (id + 1) * width), i * width);
  }
}
