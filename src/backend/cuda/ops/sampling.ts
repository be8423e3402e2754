import { NotDrawn } from "../../../base/not-drawn.ts";
import type { SampleRows, SlotTensors } from "../../backend.ts";
import { checkSample } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { SLOT_CONSTANTS } from "./slot-layout.ts";
import { LOGIT_CONSTANTS, LOGIT_TILE, ROW_THREADS, TILE_THREADS, TILES_PER_BLOCK } from "./tiles.ts";

/** Bytes of a tile's statistics. */
const TILE_STATS_BYTES = 16;

const SOURCE = {
  file: "sampling.cu",
  constants: {
    ...SLOT_CONSTANTS,
    ...LOGIT_CONSTANTS,
    TILE_STATS_BYTES,
    DREW_NOT_A_NUMBER: NotDrawn.notANumber,
    DREW_NOTHING_ALLOWED: NotDrawn.nothingAllowed,
  },
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

const DRAW_ROWS = {
  ...SOURCE,
  entry: "draw_rows",
  pointers: ["out", "keys", "row_slots", "tokens", "lengths"],
  scalars: ["rows", "parts", "capacity"],
} as const;

/** Drawing tokens. */
export class SamplingOps {
  readonly #sampleTiles: KernelVariants<typeof SAMPLE_TILES>;
  readonly #sampleRows: KernelVariants<typeof SAMPLE_ROWS>;
  readonly #drawRows: KernelVariants<typeof DRAW_ROWS>;
  readonly #scratch: Scratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    options: KernelOptions = {},
  ) {
    this.#sampleTiles = new KernelVariants(library, SAMPLE_TILES, "float32", options);
    this.#sampleRows = new KernelVariants(library, SAMPLE_ROWS, "float32", options);
    this.#drawRows = new KernelVariants(library, DRAW_ROWS, "float32", options);
    this.#scratch = new Scratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#sampleTiles.unit()];
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

  /** Draws the best of keys uint64 [N, parts], each row's candidates, and records it in the row's slot. */
  drawRows(
    stream: number,
    out: Tensor,
    keys: DeviceBuffer,
    parts: number,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const rows = out.dim(0);
    const { tokens, lengths } = slots;
    this.#drawRows.get().launch(stream, Math.ceil(rows / TILES_PER_BLOCK), 1, 1, TILE_THREADS, 0, {
      ...{ out, keys, row_slots: samples.slots, tokens, lengths, rows, parts, capacity: tokens.dim(1) },
    });
  }
}
