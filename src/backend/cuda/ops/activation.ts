import type { FloatDType } from "../../../base/dtype.ts";
import type { Activation } from "../../backend.ts";
import { checkActivation, checkMultiplyColumns } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { accessWidth, KernelVariants } from "./kernel-variants.ts";

const THREADS = 128;

/** Codes of activations in kernels. */
export const ACTIVATION_CODES: Record<Activation, number> = { silu: 0, gelu: 1, gelu_tanh: 2 };
export const ACTIVATION_CONSTANTS = {
  ACTIVATION_SILU: ACTIVATION_CODES.silu,
  ACTIVATION_GELU: ACTIVATION_CODES.gelu,
  ACTIVATION_GELU_TANH: ACTIVATION_CODES.gelu_tanh,
};

const SOURCE = {
  file: "activation.cu",
  constants: ACTIVATION_CONSTANTS,
} as const;
const GATED_ACTIVATION = {
  ...SOURCE,
  entry: "gated_activation",
  pointers: ["out", "gate_up"],
  scalars: ["width", "activation"],
} as const;
const PLAIN_ACTIVATION = {
  ...SOURCE,
  entry: "plain_activation",
  pointers: ["out", "x"],
  scalars: ["count", "activation"],
} as const;

const MULTIPLY_COLUMNS = {
  ...SOURCE,
  entry: "multiply_columns",
  pointers: ["x", "factors"],
  scalars: ["width", "stride", "first"],
} as const;

/** Elementwise activations and products. */
export class ActivationOps {
  readonly #gated: KernelVariants<typeof GATED_ACTIVATION>;
  readonly #plain: KernelVariants<typeof PLAIN_ACTIVATION>;
  readonly #columns: KernelVariants<typeof MULTIPLY_COLUMNS>;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#gated = new KernelVariants(library, GATED_ACTIVATION, dtype, options);
    this.#plain = new KernelVariants(library, PLAIN_ACTIVATION, dtype, options);
    this.#columns = new KernelVariants(library, MULTIPLY_COLUMNS, dtype, options);
  }

  /** Units for rows of `width` elements, in tensors that are aligned to vectors. */
  units(width: number): KernelUnit[] {
    return [this.#gated.unit({ ACCESS: accessWidth(this.dtype, width) })];
  }

  /** out[T, I] = act(gateUp[T, :I]) · gateUp[T, I:], for a caller that has checked them. */
  gatedActivation(stream: number, out: Tensor, gateUp: Tensor, activation: Activation): void {
    const [tokens, width] = [out.dim(0), out.dim(1)];
    const access = accessWidth(this.dtype, width, out, gateUp);
    const blocks = Math.ceil(width / access / THREADS);
    const args = { out, gate_up: gateUp, width, activation: ACTIVATION_CODES[activation] };
    this.#gated.get(access, { ACCESS: access }).launch(stream, tokens, blocks, 1, THREADS, 0, args);
  }

  /** See `Backend.activation`. */
  activation(stream: number, out: Tensor, x: Tensor, activation: Activation): void {
    checkActivation(this.dtype, out, x);
    if (x.size === 0) return;
    const access = accessWidth(this.dtype, x.size, out, x);
    const blocks = Math.ceil(x.size / access / THREADS);
    const args = { out, x, count: x.size, activation: ACTIVATION_CODES[activation] };
    this.#plain.get(access, { ACCESS: access }).launch(stream, blocks, 1, 1, THREADS, 0, args);
  }

  /** See `Backend.multiplyColumns`. */
  multiplyColumns(stream: number, x: Tensor, factors: Tensor, start: number): void {
    const { tokens, width, stride } = checkMultiplyColumns(this.dtype, x, factors, start);
    if (x.size === 0) return;
    const whole = [width, stride, start].map((columns) => accessWidth(this.dtype, columns, x, factors));
    const access = Math.min(...whole);
    const blocks = Math.ceil(width / access / THREADS);
    const args = { x, factors, width, stride, first: start };
    this.#columns.get(access, { ACCESS: access }).launch(stream, tokens, blocks, 1, THREADS, 0, args);
  }
}
