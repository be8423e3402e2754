import { ConfigError } from "../../../base/errors.ts";
import type { AttentionSpec, BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { DecodeAttention } from "./decode-attention.ts";
import { type HeadShape, type Heads, headShape } from "./head-shape.ts";
import { HopperPrefill } from "./hopper-prefill.ts";
import { PrefillAttention } from "./prefill-attention.ts";

/**
 * Paged attention: one kernel for rows of one query token, another for the others. Launch shapes and scratch addresses of
 * decode rows depend on row counts alone, so their launches can be captured; scratch is allocated at a head shape's
 * first use, which must come before capture.
 */
export class AttentionOps {
  readonly #decode: DecodeAttention;
  readonly #prefill: PrefillAttention;
  readonly #hopperPrefill: HopperPrefill | undefined;

  /** @throws ConfigError when `dtype` is not a 16-bit type. */
  constructor(library: KernelLibrary, options: AttentionOptions) {
    if (options.dtype === "float32")
      throw new ConfigError("dtype", "attention on cuda computes in bfloat16 or float16, not float32");
    this.#decode = new DecodeAttention(library, options);
    this.#prefill = new PrefillAttention(library, options);
    this.#hopperPrefill = options.hopper ? new HopperPrefill(library, options) : undefined;
  }

  /** @throws UnsupportedModelError as `headShape` does. */
  units(heads: Heads, blockSize: number): KernelUnit[] {
    const shape = headShape(heads, blockSize);
    return [this.#prefillFor(shape).unit(shape), this.#decode.unit(shape)];
  }

  /**
   * The last part of `Backend.attend`, whose checks have passed: queries in `qkv`, and all keys and values in the cache.
   * `shape` is that of `spec`.
   */
  attention(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
    shape: HeadShape,
  ): void {
    const { decodeRows, numRows } = batch;
    if (decodeRows > 0) this.#decode.launch(stream, out, qkv, cache, batch, spec, shape);
    if (decodeRows < numRows) this.#prefillFor(shape).launch(stream, out, qkv, cache, batch, spec, shape);
  }

  #prefillFor(shape: HeadShape): PrefillAttention | HopperPrefill {
    const hopper = this.#hopperPrefill;
    return hopper !== undefined && HopperPrefill.takes(shape) ? hopper : this.#prefill;
  }
}
