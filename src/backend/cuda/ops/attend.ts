import { ConfigError } from "../../../base/errors.ts";
import type { AttentionSpec } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache, ModelShape } from "../../backend.ts";
import { checkAttend } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { DecodeAttention } from "./decode-attention.ts";
import { checkHeadAlignment } from "./head-part.ts";
import { type HeadShape, headShape } from "./head-shape.ts";
import { HopperPrefill } from "./hopper-prefill.ts";
import { PrefillAttention } from "./prefill-attention.ts";
import { RotaryOps } from "./rotary.ts";

/**
 * `Backend.attend`: one kernel for rows of one query token; for the others one that stores their keys and values, and one for
 * attention over the cache. Launch shapes and scratch addresses of decode rows depend on row counts alone, so their launches
 * can be captured; scratch is allocated at a head shape's first use, which must come before capture.
 */
export class AttendOps {
  readonly #options: AttentionOptions;
  readonly #decode: DecodeAttention;
  readonly #rotary: RotaryOps;
  readonly #prefill: PrefillAttention;
  readonly #hopperPrefill: HopperPrefill | undefined;

  /** @throws ConfigError when `dtype` is not a 16-bit type. */
  constructor(library: KernelLibrary, options: AttentionOptions) {
    if (options.dtype === "float32")
      throw new ConfigError("dtype", "attention on cuda computes in bfloat16 or float16, not float32");
    this.#options = options;
    this.#decode = new DecodeAttention(library, options);
    this.#rotary = new RotaryOps(library, options.dtype, options);
    this.#prefill = new PrefillAttention(library, options);
    this.#hopperPrefill = options.hopper ? new HopperPrefill(library, options) : undefined;
  }

  /** @throws UnsupportedModelError as `attend` does. */
  units(model: ModelShape): KernelUnit[] {
    return model.attentionForms.flatMap((form) => {
      const shape = headShape({ ...model, ...form.kvHeads }, model.blockSize, model.kvDtype);
      return [
        this.#prefillFor(shape).unit(shape, form),
        ...this.#decode.units(shape, form),
        ...this.#rotary.units(shape.headDim, form, shape.float8),
      ];
    });
  }

  /**
   * See `Backend.attend`.
   * @throws UnsupportedModelError for head shapes that the kernels cannot take.
   */
  attend(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
  ): void {
    const { dtype } = this.#options;
    const { tokens } = checkAttend(dtype, out, qkv, cache, batch, spec);
    if (tokens === 0) return;
    const shape = headShape(spec, batch.blockSize, cache.keys.dtype);
    checkHeadAlignment(qkv, cache, spec);
    const { decodeRows, numRows } = batch;
    if (decodeRows > 0) this.#decode.launch(stream, out, qkv, cache, batch, spec, shape);
    if (decodeRows === numRows) return;
    this.#rotary.ropeAndStoreKv(stream, qkv, cache, batch, spec, decodeRows);
    this.#prefillFor(shape).launch(stream, out, qkv, cache, batch, spec, shape);
  }

  #prefillFor(shape: HeadShape): PrefillAttention | HopperPrefill {
    const hopper = this.#hopperPrefill;
    return hopper !== undefined && HopperPrefill.takes(shape) ? hopper : this.#prefill;
  }
}
