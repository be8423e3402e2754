import { checkCapLogits } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { accessWidth, KernelVariants } from "./kernel-variants.ts";

const THREADS = 128;

const CAP_LOGITS = {
  file: "cap_logits.cu",
  entry: "cap_logits",
  pointers: ["logits"],
  scalars: ["count", "cap"],
} as const;

/** `Backend.capLogits`. */
export class CapLogitsOps {
  readonly #kernels: KernelVariants<typeof CAP_LOGITS>;

  constructor(library: KernelLibrary, options: KernelOptions = {}) {
    this.#kernels = new KernelVariants(library, CAP_LOGITS, "float32", options);
  }

  /** Units for rows of a vocabulary of this size, in tensors that are aligned to vectors. */
  units(vocabSize: number): KernelUnit[] {
    return [this.#kernels.unit({ ACCESS: accessWidth("float32", vocabSize) })];
  }

  /** See `Backend.capLogits`. */
  capLogits(stream: number, logits: Tensor, cap: number): void {
    const { count } = checkCapLogits(logits, cap);
    if (count === 0) return;
    const access = accessWidth("float32", count, logits);
    const blocks = Math.ceil(count / access / THREADS);
    this.#kernels
      .get(access, { ACCESS: access })
      .launch(stream, blocks, 1, 1, THREADS, 0, { logits, count, cap });
  }
}
