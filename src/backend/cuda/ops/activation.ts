import type { FloatDType } from "../../../base/dtype.ts";
import type { Activation } from "../../backend.ts";
import { checkActivation, checkGatedActivation } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { accessWidth, KernelVariants } from "./kernel-variants.ts";

const THREADS = 128;

/** The enumeration in activation.cu. */
const CODES: Record<Activation, number> = { silu: 0, gelu: 1, gelu_tanh: 2 };

/** Elementwise activations. */
export class ActivationOps {
  readonly #gated: KernelVariants;
  readonly #plain: KernelVariants;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#gated = new KernelVariants(library, "activation.cu", "gated_activation", "ppii", dtype, options);
    this.#plain = new KernelVariants(library, "activation.cu", "plain_activation", "ppli", dtype, options);
  }

  /** What rows of `width` elements need, in tensors that are aligned to vectors. */
  units(width: number): KernelUnit[] {
    return [this.#gated.unit({ ACCESS: accessWidth(this.dtype, width) })];
  }

  /** See `Backend.gatedActivation`. */
  gatedActivation(stream: number, out: Tensor, gateUp: Tensor, activation: Activation): void {
    const { tokens, width } = checkGatedActivation(this.dtype, out, gateUp);
    if (tokens === 0) return;
    const access = accessWidth(this.dtype, width, out, gateUp);
    const blocks = Math.ceil(width / access / THREADS);
    this.#gated
      .get(access, { ACCESS: access })
      .launch(stream, tokens, blocks, 1, THREADS, 0, out.address, gateUp.address, width, CODES[activation]);
  }

  /** See `Backend.activation`. */
  activation(stream: number, out: Tensor, x: Tensor, activation: Activation): void {
    checkActivation(this.dtype, out, x);
    if (x.size === 0) return;
    const access = accessWidth(this.dtype, x.size, out, x);
    const blocks = Math.ceil(x.size / access / THREADS);
    this.#plain
      .get(access, { ACCESS: access })
      .launch(stream, blocks, 1, 1, THREADS, 0, out.address, x.address, x.size, CODES[activation]);
  }
}
