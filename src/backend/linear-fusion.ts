import type { Tensor } from "./tensor.ts";

export type Activation = "silu" | "gelu" | "gelu_tanh";

/** `x / rms(x) · weight`, rms = sqrt(mean of squares + eps). */
export interface RmsNormSpec {
  readonly weight: Tensor;
  readonly eps: number;
}

/** The steps around a product y[T, N], in their order. */
export interface LinearFusion {
  /** x is normalised first, with weight[K]; the tensor x stays as it is. */
  readonly norm?: RmsNormSpec | undefined;
  /** y += bias[N]. */
  readonly bias?: Tensor | undefined;
  /** y = act(y). Not together with `addTo`. */
  readonly activation?: LinearActivation | undefined;
  /** out = addTo[T, N] + y. May be `out` itself, and must not overlap it otherwise. */
  readonly addTo?: Tensor | undefined;
}

/** An activation of a product's outputs. Gated (Shazeer 2020), `out` is [T, N/2]: act(y[:, :N/2]) · y[:, N/2:]. */
export interface LinearActivation {
  readonly kind: Activation;
  readonly gated: boolean;
}
