import type { FloatDType } from "../../../base/dtype.ts";
import { invariant } from "../../../base/errors.ts";
import { checkAddRmsNorm, checkLayerNorm, checkRmsNorm } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { accessWidth, KernelVariants } from "./kernel-variants.ts";

/** MAX_THREADS in norm.cu. */
const MAX_THREADS = 512;
/** Accesses of one thread that still fit in registers. */
const MAX_ACCESSES = 32;

/** Normalisation over the last dimension. */
export class NormOps {
  readonly #rmsNorm: KernelVariants;
  readonly #addRmsNorm: KernelVariants;
  readonly #layerNorm: KernelVariants;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    const variants = (entry: string, signature: string) =>
      new KernelVariants(library, "norm.cu", entry, signature, dtype, options);
    this.#rmsNorm = variants("rms_norm", "pppif");
    this.#addRmsNorm = variants("add_rms_norm", "ppppif");
    this.#layerNorm = variants("layer_norm", "ppppif");
  }

  /** What rows of `width` elements need, in tensors that are aligned to vectors. */
  units(width: number): KernelUnit[] {
    const access = accessWidth(this.dtype, width);
    return [this.#rmsNorm.unit({ ACCESS: access, ACCESSES: accessesOf(width, access) })];
  }

  /** See `Backend.rmsNorm`. */
  rmsNorm(stream: number, out: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    const { tokens, width } = checkRmsNorm(this.dtype, out, x, weight);
    this.#launch(this.#rmsNorm, stream, tokens, width, [out, x, weight], eps);
  }

  /** See `Backend.addRmsNorm`. */
  addRmsNorm(stream: number, out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: number): void {
    const { tokens, width } = checkAddRmsNorm(this.dtype, out, residual, x, weight);
    this.#launch(this.#addRmsNorm, stream, tokens, width, [out, residual, x, weight], eps);
  }

  /** See `Backend.layerNorm`. */
  layerNorm(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    eps: number,
  ): void {
    const { tokens, width } = checkLayerNorm(this.dtype, out, x, weight, bias);
    this.#launch(this.#layerNorm, stream, tokens, width, [out, x, weight, bias], eps);
  }

  #launch(
    variants: KernelVariants,
    stream: number,
    rows: number,
    width: number,
    tensors: readonly (Tensor | undefined)[],
    eps: number,
  ): void {
    if (rows === 0) return;
    const access = accessWidth(this.dtype, width, ...tensors);
    const accesses = accessesOf(width, access);
    const threads = Math.ceil(width / access / accesses / 32) * 32;
    const addresses = tensors.map((tensor) => tensor?.address ?? 0);
    variants
      .get(access * (MAX_ACCESSES + 1) + accesses, { ACCESS: access, ACCESSES: accesses })
      .launch(stream, rows, 1, 1, threads, 0, ...addresses, width, eps);
  }
}

/** Accesses of each thread, a power of two. */
function accessesOf(width: number, access: number): number {
  const accesses = 2 ** Math.ceil(Math.log2(Math.max(1, width / access / MAX_THREADS)));
  invariant(accesses <= MAX_ACCESSES, `normalisation over ${width} elements is too wide`);
  return accesses;
}
