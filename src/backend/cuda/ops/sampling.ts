import { MAX_LOGIT_EDITS } from "../../../base/sampling-params.ts";
import type { SampleRows, SlotTensors } from "../../backend.ts";
import { checkProcessLogits, checkSample } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { ROW_THREADS, TILE, TILE_THREADS, TILES_PER_BLOCK, TileScratch } from "./tile-scratch.ts";

/** CHUNK in sampling.cu: logits that a block of process_logits takes at a time. */
const CHUNK = 2048;
const PROCESS_THREADS = 256;
/** Blocks of process_logits for all rows together: enough for any GPU, few enough that rows without work cost little. */
const PROCESS_BLOCKS = 1024;
/** sizeof(TileStats) in sampling.cu. */
const STATS_BYTES = 16;

/** Processing of logits, and drawing tokens. */
export class SamplingOps {
  readonly #processLogits: KernelVariants;
  readonly #sampleTiles: KernelVariants;
  readonly #sampleRows: KernelVariants;
  readonly #scratch: TileScratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    allocate: (byteLength: number) => DeviceBuffer,
    options: KernelOptions = {},
  ) {
    const variants = (entry: string, signature: string) =>
      new KernelVariants(library, "sampling.cu", entry, signature, "float32", options);
    this.#processLogits = variants("process_logits", "ppppppppppiii");
    this.#sampleTiles = variants("sample_tiles", "pppppii");
    this.#sampleRows = variants("sample_rows", "ppppppppiii");
    this.#scratch = new TileScratch(allocate);
  }

  units(): KernelUnit[] {
    return [this.#processLogits.unit()];
  }

  /** See `Backend.processLogits`. */
  processLogits(stream: number, out: Tensor, logits: Tensor, sample: SampleRows, slots: SlotTensors): void {
    const { rows, vocab, capacity } = checkProcessLogits(out, logits, sample, slots);
    if (rows === 0) return;
    const blocks = Math.min(Math.ceil(vocab / CHUNK), Math.ceil(PROCESS_BLOCKS / rows));
    this.#processLogits
      .get()
      .launch(
        ...[stream, blocks, rows, 1, PROCESS_THREADS, 0],
        ...[out.address, logits.address, sample.rowSlots.address, sample.positions.address],
        ...[slots.params.address, slots.tokens.address, slots.edits.address],
        ...[slots.badWords.address, slots.allowed.address, slots.counts.address],
        ...[vocab, capacity, MAX_LOGIT_EDITS],
      );
  }

  /** See `Backend.sample`. */
  sample(stream: number, out: Tensor, logits: Tensor, sample: SampleRows, slots: SlotTensors): void {
    const { rows, vocab, capacity } = checkSample(out, logits, sample, slots);
    if (rows === 0) return;
    const tiles = Math.ceil(vocab / TILE);
    const stats = this.#scratch.address(rows * tiles * STATS_BYTES);
    const { rowSlots, positions } = sample;
    this.#sampleTiles
      .get()
      .launch(
        ...[stream, Math.ceil(tiles / TILES_PER_BLOCK), rows, 1, TILE_THREADS, 0],
        ...[stats, logits.address, rowSlots.address, positions.address, slots.params.address, vocab, tiles],
      );
    this.#sampleRows
      .get()
      .launch(
        ...[stream, rows, 1, 1, ROW_THREADS, 4 * tiles],
        ...[out.address, logits.address, stats, rowSlots.address, positions.address],
        ...[slots.params.address, slots.tokens.address, slots.counts.address, vocab, tiles, capacity],
      );
  }
}
