import type { SampleRows, SlotTensors } from "../../backend.ts";
import { checkProcessLogits } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants } from "./kernel-variants.ts";
import { SLOT_CONSTANTS, SLOT_TABLE_CONSTANTS } from "./slot-layout.ts";

/** Logits that a block takes at a time. */
const LOGITS_CHUNK = 2048;
const THREADS = 256;
/** Blocks for all rows together: enough for any GPU, few enough that rows without work cost little. */
const MAX_BLOCKS = 1024;

const PROCESS_LOGITS = {
  file: "process_logits.cu",
  constants: { ...SLOT_CONSTANTS, ...SLOT_TABLE_CONSTANTS, LOGITS_CHUNK },
  entry: "process_logits",
  pointers: [
    ...(["out", "logits", "row_slots", "positions", "params", "tokens"] as const),
    ...(["edits", "bad_words", "allowed", "counts"] as const),
  ],
  scalars: ["vocab", "capacity"],
} as const;

/** The changes that slots ask of their logits. */
export class ProcessLogitsOps {
  readonly #kernels: KernelVariants<typeof PROCESS_LOGITS>;

  constructor(library: KernelLibrary, options: KernelOptions = {}) {
    this.#kernels = new KernelVariants(library, PROCESS_LOGITS, "float32", options);
  }

  units(): KernelUnit[] {
    return [this.#kernels.unit()];
  }

  /** See `Backend.processLogits`. */
  processLogits(stream: number, out: Tensor, logits: Tensor, samples: SampleRows, slots: SlotTensors): void {
    const { rows, vocab, capacity } = checkProcessLogits(out, logits, samples, slots);
    if (rows === 0) return;
    const blocks = Math.min(Math.ceil(vocab / LOGITS_CHUNK), Math.ceil(MAX_BLOCKS / rows));
    this.#kernels.get().launch(stream, blocks, rows, 1, THREADS, 0, {
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
}
