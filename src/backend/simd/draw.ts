import * as layout from "../../../kernels-wasm/layout.ts";
import type { DrawnSamples } from "../cpu/batch.ts";
import { accept, bestOf, type Candidate } from "../cpu/sampling.ts";
import { type HostSlots, Slot } from "../cpu/slots.ts";
import type { Place } from "./place.ts";
import type { Arguments, ThreadPool } from "./thread-pool.ts";

/** Logits [N, V], from `address` on. */
interface PlacedLogits {
  readonly place: Place;
  readonly address: number;
}

/** The operands of `Backend.sample`. */
export interface DrawnRows {
  readonly tokens: Int32Array;
  readonly samples: DrawnSamples;
  readonly slots: HostSlots;
  readonly logits: PlacedLogits;
  readonly processed: PlacedLogits;
}

/** A row of logits to draw from. */
interface DrawnRow {
  /** Of its token in `DrawnRows.tokens`. */
  readonly index: number;
  /** Address of its logits [V]. */
  readonly logits: number;
  readonly slot: Slot;
  /** Position of the token that the logits follow. */
  readonly position: number;
}

/** Draws a token for each row and appends it to the slot's sequence; see `Backend.sample`. */
export function draw(pool: ThreadPool, { tokens, samples, slots, logits, processed }: DrawnRows): void {
  const [here, elsewhere]: [DrawnRow[], DrawnRow[]] = [[], []];
  for (let index = 0; index < samples.slots.length; index++) {
    const slot = new Slot(slots, samples.slots[index]!);
    const { place, address } = slot.word("flags") === 0 ? logits : processed;
    const row = {
      ...{ index, slot, position: samples.positions[index]! },
      logits: address + 4 * slots.vocab * index,
    };
    if (place === logits.place) here.push(row);
    else elsewhere.push(row);
  }
  drawRows(pool, logits.place, tokens, here, slots.vocab);
  drawRows(pool, processed.place, tokens, elsewhere, slots.vocab);
}

/** Rows of one place. */
function drawRows(
  pool: ThreadPool,
  place: Place,
  out: Int32Array,
  rows: readonly DrawnRow[],
  vocab: number,
): void {
  if (rows.length === 0) return;
  const parts = Math.ceil(vocab / layout.DRAW_PART);
  const records = place.scratch("rows", rows.length * layout.ROW_RECORD);
  const candidates = place.scratch("candidates", rows.length * parts * layout.CANDIDATE_BYTES);
  const memory = new DataView(place.bytes);
  let numCut = 0;
  for (let i = 0; i < rows.length; i++)
    numCut += Number(writeRecord(memory, records + i * layout.ROW_RECORD, rows[i]!));
  const write = (args: Arguments) => args.words(0, records, vocab, parts, candidates, 0);
  if (numCut > 0) {
    const work = 8 * numCut * vocab;
    pool.run(place, { kernel: layout.FIND_THRESHOLD, units: rows.length, work, write });
  }
  const work = 4 * rows.length * vocab;
  pool.run(place, { kernel: layout.DRAW, units: rows.length * parts, work, write });
  for (let i = 0; i < rows.length; i++) {
    const ofParts: Candidate[] = [];
    for (let part = 0; part < parts; part++) {
      const at = candidates + (i * parts + part) * layout.CANDIDATE_BYTES;
      ofParts.push({ key: memory.getFloat64(at, true), token: memory.getInt32(at + 8, true) });
    }
    const { index, slot } = rows[i]!;
    out[index] = accept(bestOf(ofParts), slot);
  }
}

/** @returns whether the row asks for more than a temperature */
function writeRecord(memory: DataView, at: number, { logits, slot, position }: DrawnRow): boolean {
  const temperature = slot.float("temperature");
  const [minP, topP, topK] = [slot.float("minP"), slot.float("topP"), slot.word("topK") | 0];
  const isCut = temperature !== 0 && (minP > 0 || topP < 1 || topK > 0);
  memory.setInt32(at + layout.ROW_LOGITS, logits, true);
  memory.setUint32(at + layout.ROW_SEED_LOW, slot.word("seedLow"), true);
  memory.setUint32(at + layout.ROW_SEED_HIGH, slot.word("seedHigh"), true);
  memory.setInt32(at + layout.ROW_POSITION, position + 1, true);
  memory.setFloat64(at + layout.ROW_TEMPERATURE, temperature, true);
  memory.setFloat64(at + layout.ROW_LOG_MIN_P, minP > 0 ? Math.log(minP) : -Infinity, true);
  memory.setFloat64(at + layout.ROW_TOP_P, topP, true);
  memory.setInt32(at + layout.ROW_TOP_K, topK, true);
  memory.setInt32(at + layout.ROW_IS_CUT, Number(isCut), true);
  memory.setFloat64(at + layout.ROW_THRESHOLD, -Infinity, true);
  return isCut;
}
