import { NotDrawn } from "../../../base/not-drawn.ts";
import type { SampleRows, SlotTensors } from "../../backend.ts";
import { checkProcessLogits, checkSample } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { SLOT_CONSTANTS, SLOT_TABLE_CONSTANTS } from "./slot-layout.ts";
import { LOGIT_CONSTANTS, LOGIT_TILE, ROW_THREADS, TILE_THREADS, TILES_PER_BLOCK } from "./tiles.ts";

/** Logits that a block of process_logits takes at a time. */
const LOGITS_CHUNK = 2048;
const PROCESS_THREADS = 256;
/** Blocks of process_logits for all rows together: enough for any GPU, few enough that rows without work cost little. */
const PROCESS_BLOCKS = 1024;
/** Bytes of a tile's statistics. */
const TILE_STATS_BYTES = 16;

const SOURCE = {
  file: "sampling.cu",
  constants: {
    ...SLOT_CONSTANTS,
    ...SLOT_TABLE_CONSTANTS,
    ...LOGIT_CONSTANTS,
    LOGITS_CHUNK,
    TILE_STATS_BYTES,
    DREW_NOT_A_NUMBER: NotDrawn.notANumber,
    DREW_NOTHING_ALLOWED: NotDrawn.nothingAllowed,
  },
} as const;
const PROCESS_LOGITS = {
  ...SOURCE,
  entry: "process_logits",
  pointers: [
    ...(["out", "logits", "row_slots", "positions", "params", "tokens"] as const),
    ...(["edits", "bad_words", "allowed", "counts"] as const),
  ],
  scalars: ["vocab", "capacity"],
} as const;
const SAMPLE_TILES = {
  ...SOURCE,
  entry: "sample_tiles",
  pointers: ["stats", "logits", "processed", "row_slots", "positions", "params"],
  scalars: ["vocab", "tiles"],
} as const;
const SAMPLE_ROWS = {
  ...SOURCE,
  entry: "sample_rows",
  pointers: [
    ...(["out", "logits", "processed", "stats", "row_slots", "positions", "params"] as const),
    ...(["tokens", "lengths", "counts"] as const),
  ],
  scalars: ["vocab", "tiles", "capacity"],
} as const;

/** Processing of logits, and drawing tokens. */
export class SamplingOps {
  readonly #processLogits: KernelVariants<typeof PROCESS_LOGITS>;
  readonly #sampleTiles: KernelVariants<typeof SAMPLE_TILES>;
  readonly #sampleRows: KernelVariants<typeof SAMPLE_ROWS>;
  readonly #scratch: Scratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    options: KernelOptions = {},
  ) {
    this.#processLogits = new KernelVariants(library, PROCESS_LOGITS, "float32", options);
    this.#sampleTiles = new KernelVariants(library, SAMPLE_TILES, "float32", options);
    this.#sampleRows = new KernelVariants(library, SAMPLE_ROWS, "float32", options);
    this.#scratch = new Scratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#processLogits.unit()];
  }

  /** See `Backend.processLogits`. */
  processLogits(stream: number, out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors): void {
    const { rows, vocab, capacity } = checkProcessLogits(out, logits, samples, slots);
    if (rows === 0) return;
    const blocks = Math.min(Math.ceil(vocab / LOGITS_CHUNK), Math.ceil(PROCESS_BLOCKS / rows));
    this.#processLogits.get().launch(stream, blocks, rows, 1, PROCESS_THREADS, 0, {
      out,
      logits,
      row_slots: samples.slots,
      positions: samples.positions,
      params: slots.params,
      tokens: slots.tokens,
      edits: slots.edits,
      bad_words: slots.badWords,
      allowed: slots.allowed,
      counts: slots.counts,
      vocab,
      capacity,
    });
  }

  /** See `Backend.sample`. */
  sample(
    stream: number,
    out: Tensor,
    logits: Tensor,
    processed: Tensor,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const { rows, vocab, capacity } = checkSample(out, logits, processed, samples, slots);
    if (rows === 0) return;
    const tiles = Math.ceil(vocab / LOGIT_TILE);
    const stats = this.#scratch.atLeast(rows * tiles * TILE_STATS_BYTES);
    const { slots: row_slots, positions } = samples;
    const { params, tokens, lengths, counts } = slots;
    const blocks = Math.ceil(tiles / TILES_PER_BLOCK);
    const ofTiles = { stats, logits, processed, row_slots, positions, params, vocab, tiles };
    this.#sampleTiles.get().launch(stream, blocks, rows, 1, TILE_THREADS, 0, ofTiles);
    const ofRows = {
      out,
      logits,
      processed,
      stats,
      row_slots,
      positions,
      params,
      tokens,
      lengths,
      counts,
      vocab,
      tiles,
      capacity,
    };
    this.#sampleRows.get().launch(stream, rows, 1, 1, ROW_THREADS, 4 * tiles, ofRows);
  }
}
