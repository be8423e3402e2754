import type { FloatDType } from "../../../base/dtype.ts";
import { invariant } from "../../../base/errors.ts";
import type { RmsNormSpec } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { KernelVariants, wholeWarps } from "./kernel-variants.ts";

/** Columns of a thread's piece. */
const PIECE = 16;
const MAX_QUANTISE_THREADS = 256;
/** Pieces of one thread that fit in registers, beside as many of the norm's weight. */
const MAX_PIECES = 8;

const QUANTISE_TOKENS = {
  file: "quantise_tokens.cu",
  constants: { MAX_QUANTISE_THREADS },
  entry: "quantise_tokens",
  pointers: ["out", "factors", "x", "gamma"],
  scalars: ["width", "eps"],
} as const;

/** Tokens as 8-bit floats. */
export interface Float8Tokens {
  /** float8_e4m3 [T, K], each 64 columns in the order of quantised.cuh. */
  readonly codes: Tensor;
  /** float32 [T]. */
  readonly factors: Tensor;
}

/** Activations made 8-bit floats with a factor for each token: `quantise_tokens.cu`. */
export class Float8Inputs {
  readonly #kernels: KernelVariants<typeof QUANTISE_TOKENS>;
  readonly #codes: Scratch;
  readonly #factors: Scratch;

  constructor(
    library: KernelLibrary,
    dtype: FloatDType,
    options: KernelOptions & { readonly allocate: (byteLength: number) => DeviceBuffer },
  ) {
    this.#kernels = new KernelVariants(library, QUANTISE_TOKENS, dtype, options);
    this.#codes = new Scratch(options.allocate);
    this.#factors = new Scratch(options.allocate);
  }

  /** The widest row. */
  static readonly MAX_WIDTH = PIECE * MAX_QUANTISE_THREADS * MAX_PIECES;

  /** What rows of so many columns need compiled. */
  units(width: number): KernelUnit[] {
    return [this.#kernels.unit({ PIECES: piecesOf(width) })];
  }

  /** Loads the kernel for rows of so many columns, which capturing forbids. */
  load(width: number): void {
    this.#kernel(width);
  }

  /** x [T, K], normalised if so asked, in memory that the next one overwrites. */
  quantise(stream: number, x: Tensor, norm: RmsNormSpec | undefined): Float8Tokens {
    const [tokens, width] = [x.dim(0), x.dim(1)];
    const codes = this.#codes.tensor("float8_e4m3", [tokens, width]);
    const factors = this.#factors.tensor("float32", [tokens]);
    const threads = wholeWarps(width / PIECE / piecesOf(width));
    this.#kernel(width).launch(stream, tokens, 1, 1, threads, 0, {
      ...{ out: codes, factors, x, gamma: norm?.weight ?? null },
      ...{ width, eps: norm?.eps ?? 0 },
    });
    return { codes, factors };
  }

  #kernel(width: number) {
    const pieces = piecesOf(width);
    return this.#kernels.get(pieces, { PIECES: pieces });
  }
}

/** Pieces of each thread. */
function piecesOf(width: number): number {
  const pieces = Math.ceil(width / PIECE / MAX_QUANTISE_THREADS);
  invariant(pieces <= MAX_PIECES, `rows of ${width} elements are too wide to be quantised`);
  return pieces;
}
