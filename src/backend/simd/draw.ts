import * as layout from "../../../kernels-wasm/layout.ts";
import { accept, bestOf, type Candidate } from "../cpu/sampling.ts";
import type { Slot } from "../cpu/slots.ts";
import type { Place } from "./place.ts";
import type { ThreadPool } from "./thread-pool.ts";

/** A row of logits to draw from. */
export interface DrawnRow {
  /** Of its token among those of all rows. */
  readonly index: number;
  /** Address of its logits [V]. */
  readonly logits: number;
  readonly slot: Slot;
  /** Position of the token that the logits follow. */
  readonly position: number;
}

/** Draws a token for each row of a place into `out` and appends it to the slot's sequence; see `Backend.sample`. */
export function draw(
  pool: ThreadPool,
  place: Place,
  out: Int32Array,
  rows: readonly DrawnRow[],
  vocab: number,
): void {
  const parts = Math.ceil(vocab / layout.DRAW_PART);
  const records = place.scratch("rows", rows.length * layout.ROW_RECORD);
  const candidates = place.scratch("candidates", rows.length * parts * layout.CANDIDATE_BYTES);
  const cut = rows.filter((row, i) =>
    writeRecord(new DataView(place.bytes, records + i * layout.ROW_RECORD), row),
  );
  const args = [records, vocab, parts, candidates, 0];
  if (cut.length > 0) {
    pool.run(place, {
      kernel: layout.FIND_THRESHOLD,
      units: rows.length,
      work: 8 * cut.length * vocab,
      write: (words) => words.words(0, ...args),
    });
  }
  pool.run(place, {
    kernel: layout.DRAW,
    units: rows.length * parts,
    work: 4 * rows.length * vocab,
    write: (words) => words.words(0, ...args),
  });
  const view = new DataView(place.bytes, candidates);
  for (const [i, { index, slot }] of rows.entries()) {
    const ofParts = Array.from({ length: parts }, (_, part): Candidate => {
      const at = (i * parts + part) * layout.CANDIDATE_BYTES;
      return { key: view.getFloat64(at, true), token: view.getInt32(at + 8, true) };
    });
    out[index] = accept(bestOf(ofParts), slot);
  }
}

/** @returns whether the row asks for more than a temperature */
function writeRecord(record: DataView, { logits, slot, position }: DrawnRow): boolean {
  const temperature = slot.float("temperature");
  const [minP, topP, topK] = [slot.float("minP"), slot.float("topP"), slot.word("topK") | 0];
  const isCut = temperature !== 0 && (minP > 0 || topP < 1 || topK > 0);
  record.setInt32(layout.ROW_LOGITS, logits, true);
  record.setUint32(layout.ROW_SEED_LOW, slot.word("seedLow"), true);
  record.setUint32(layout.ROW_SEED_HIGH, slot.word("seedHigh"), true);
  record.setInt32(layout.ROW_POSITION, position + 1, true);
  record.setFloat64(layout.ROW_TEMPERATURE, temperature, true);
  record.setFloat64(layout.ROW_LOG_MIN_P, minP > 0 ? Math.log(minP) : -Infinity, true);
  record.setFloat64(layout.ROW_TOP_P, topP, true);
  record.setInt32(layout.ROW_TOP_K, topK, true);
  record.setInt32(layout.ROW_IS_CUT, Number(isCut), true);
  record.setFloat64(layout.ROW_THRESHOLD, -Infinity, true);
  return isCut;
}
