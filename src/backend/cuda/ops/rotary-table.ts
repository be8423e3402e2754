import { checkRotaryTable } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants, wholeWarps } from "./kernel-variants.ts";

const MAX_THREADS = 256;

const ROTARY_TABLE = {
  file: "rotary_table.cu",
  entry: "rotary_table",
  pointers: ["out", "frequencies"],
  scalars: ["half", "amplitude", "amplitude_rest"],
} as const;

/** The table that attention rotates by, made once for a model. */
export class RotaryTableOps {
  readonly #table: KernelVariants<typeof ROTARY_TABLE>;

  constructor(library: KernelLibrary, options: KernelOptions = {}) {
    this.#table = new KernelVariants(library, ROTARY_TABLE, "float32", options);
  }

  units(): KernelUnit[] {
    return [this.#table.unit()];
  }

  /** See `Backend.rotaryTable`. */
  rotaryTable(stream: number, out: Tensor, frequencies: Tensor, amplitude: number): void {
    const { positions, half } = checkRotaryTable(out, frequencies);
    if (positions === 0) return;
    const args = { out, frequencies, half, amplitude, amplitude_rest: amplitude - Math.fround(amplitude) };
    this.#table.get().launch(stream, positions, 1, 1, Math.min(MAX_THREADS, wholeWarps(half)), 0, args);
  }
}
