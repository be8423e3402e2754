import type { FloatDType } from "../../../base/dtype.ts";
import type { AttentionSpec, BatchTensors, LayerCache, ModelShape } from "../../backend.ts";
import { checkAttend } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { AttentionOps } from "./attention.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { headShape } from "./head-shape.ts";
import { RotaryOps } from "./rotary.ts";

/** `Backend.attend` from two parts: what happens to the projections of each token alone, and attention over the cache. */
export class AttendOps {
  readonly #dtype: FloatDType;
  readonly #rotary: RotaryOps;
  readonly #attention: AttentionOps;

  constructor(library: KernelLibrary, options: AttentionOptions) {
    this.#dtype = options.dtype;
    this.#rotary = new RotaryOps(library, options.dtype, options);
    this.#attention = new AttentionOps(library, options);
  }

  /** @throws UnsupportedModelError as `attend` does. */
  units(shape: ModelShape): KernelUnit[] {
    return [
      ...this.#attention.units(shape, shape.blockSize),
      ...this.#rotary.units(shape.headDim, shape.rotaryDim),
    ];
  }

  /**
   * See `Backend.attend`. The KV dtype is that of activations.
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
    const { tokens } = checkAttend(this.#dtype, this.#dtype, out, qkv, cache, batch, spec);
    if (tokens === 0) return;
    const shape = headShape(spec, batch.blockSize);
    this.#rotary.ropeAndStoreKv(stream, qkv, cache, batch, spec);
    this.#attention.attention(stream, out, qkv, cache, batch, spec, shape);
  }
}
