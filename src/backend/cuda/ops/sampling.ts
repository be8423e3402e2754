import { NotDrawn } from "../../../base/not-drawn.ts";
import type { SampleRows, SlotTensors } from "../../backend.ts";
import { checkSample } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { type CandidateExchange, Candidates } from "./candidates.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { SLOT_CONSTANTS } from "./slot-layout.ts";
import {
  LOGIT_CONSTANTS,
  LOGIT_TILE,
  ROW_THREADS,
  TILE_STATS_BYTES,
  TILE_THREADS,
  TILES_PER_BLOCK,
} from "./tiles.ts";

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
  scalars: ["vocab", "first_token", "tiles"],
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

export interface SamplingOptions extends KernelOptions {
  /** The other ranks, where they divide the vocabulary. */
  readonly ranks?: CandidateExchange | undefined;
}

/** Neighbouring tokens whose noise comes from one block of Philox. */
export const NOISE_GROUP = 4;

/** Drawing tokens. */
export class SamplingOps {
  readonly #sampleTiles: KernelVariants<typeof SAMPLE_TILES>;
  readonly #sampleRows: KernelVariants<typeof SAMPLE_ROWS>;
  readonly #drawRows: KernelVariants<typeof DRAW_ROWS>;
  readonly #candidates: Candidates | undefined;
  readonly #ranks: number;
  readonly #scratch: Scratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    options: SamplingOptions = {},
  ) {
    this.#sampleTiles = new KernelVariants(library, SAMPLE_TILES, "float32", options);
    this.#sampleRows = new KernelVariants(library, SAMPLE_ROWS, "float32", options);
    this.#drawRows = new KernelVariants(library, DRAW_ROWS, "float32", options);
    const { ranks } = options;
    this.#candidates = ranks && new Candidates(library, allocate, ranks, options);
    this.#ranks = ranks?.size ?? 1;
    this.#scratch = new Scratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#sampleTiles.unit(), ...(this.#candidates?.units() ?? [])];
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
    const { tiles, stats } = this.#tileStats(stream, logits, processed, 0, samples, slots);
    const { slots: row_slots, positions } = samples;
    const { params, tokens, lengths, counts } = slots;
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

  /**
   * Draws from the logits [N, V] of this rank's tokens, from `firstToken` on, and those of the other ranks; for slots that ask for
   * a temperature at most. V is a multiple of `NOISE_GROUP`.
   */
  drawPart(
    stream: number,
    out: Tensor,
    logits: Tensor,
    firstToken: number,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    const { tiles, stats } = this.#tileStats(stream, logits, logits, firstToken, samples, slots);
    const candidates = this.#candidates!.ofTiles(stream, stats, out.dim(0), tiles);
    this.#draw(stream, out, candidates, this.#ranks, samples, slots);
  }

  /**
   * Draws the best of keys uint64 [N, parts], each row's candidates, and records it in the row's slot; the best of all ranks' where
   * they divide the vocabulary.
   */
  drawRows(
    stream: number,
    out: Tensor,
    keys: DeviceBuffer,
    parts: number,
    samples: SampleRows,
    slots: SlotTensors,
  ): void {
    if (this.#candidates === undefined) {
      this.#draw(stream, out, keys, parts, samples, slots);
      return;
    }
    const candidates = this.#candidates.ofKeys(stream, keys, out.dim(0), parts);
    this.#draw(stream, out, candidates, this.#ranks, samples, slots);
  }

  #draw(
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

  #tileStats(
    stream: number,
    logits: Tensor,
    processed: Tensor,
    firstToken: number,
    samples: SampleRows,
    slots: SlotTensors,
  ): { readonly tiles: number; readonly stats: DeviceBuffer } {
    const [rows, vocab] = [logits.dim(0), logits.dim(1)];
    const tiles = Math.ceil(vocab / LOGIT_TILE);
    const stats = this.#scratch.atLeast(rows * tiles * TILE_STATS_BYTES);
    const blocks = Math.ceil(tiles / TILES_PER_BLOCK);
    this.#sampleTiles.get().launch(stream, blocks, rows, 1, TILE_THREADS, 0, {
      ...{ stats, logits, processed, row_slots: samples.slots, positions: samples.positions },
      ...{ params: slots.params, vocab, first_token: firstToken, tiles },
    });
    return { tiles, stats };
  }
}
