import type { Activation, RmsNormSpec } from "./linear-fusion.ts";
import type { Tensor } from "./tensor.ts";
import type { Weight } from "./weight.ts";

/**
 * The ops of a mixture of experts (Shazeer et al. 2017), part of `Backend`: E experts are gated feed-forward networks of I intermediate
 * dimensions, of which each token has k.
 */
export interface ExpertOps {
  /**
   * out[T, H] = addTo[T, H] + Σ weight · (down_e · act(gate, up) + downBias_e), where gate and up are the halves of
   * gateUp_e · norm(x) + gateUpBias_e. The sum is over the experts e of each token, which with their weights follow from the router's
   * logits, float32 [T, E], as `spec` says. Terms are added in the order of the logits, the greatest first. `out` may be `x`.
   */
  experts(
    out: Tensor,
    x: Tensor,
    logits: Tensor,
    weights: ExpertWeights,
    spec: ExpertSpec,
    fusion?: ExpertFusion,
  ): void;
  /**
   * y[T, I] = sigmoid(gate[1, H] · norm(x[T, H])) · y, in place: what an expert that all tokens share makes of each.
   * @param norm of x, which stays as it is
   */
  gateRows(y: Tensor, x: Tensor, gate: Weight, norm?: RmsNormSpec): void;
}

/** The experts' matrices in their canonical form, of all experts one after another: row n of expert e of a weight [E · N, K] is its row e · N + n. */
export interface ExpertWeights {
  /** E. */
  readonly count: number;
  /** float32 [E], added to the router's logits before anything else. */
  readonly routerBias?: Tensor | undefined;
  /** float32 [E]: multiplies the weight that a token has for an expert. */
  readonly expertScales?: Tensor | undefined;
  /** [E · 2I, H]: of each expert the rows of its gate, then those of its up projection. */
  readonly gateUp: Weight;
  /** [E · H, I]. */
  readonly down: Weight;
  /** [E · 2I] and [E · H]. */
  readonly gateUpBias?: Tensor | undefined;
  readonly downBias?: Tensor | undefined;
}

/** The form of a mixture of experts. */
export interface ExpertSpec {
  /** k: a token has the experts whose logits are the k greatest; of equal ones those that come first. */
  readonly perToken: number;
  /**
   * Their weights are the softmax of a token's logits: of all of them, so that they sum to less than 1; or of the chosen ones alone,
   * which is the former divided by its sum.
   */
  readonly softmaxOver: "all" | "chosen";
  readonly activation: ExpertActivation;
}

/** act(gate, up): an activation of the gate times up, or gpt-oss's. */
export type ExpertActivation = { readonly kind: Activation } | LimitedSwiglu;

/** (up + 1) · gate · sigmoid(alpha · gate), of a gate of at most `limit`, and up of at most ± `limit`. */
export interface LimitedSwiglu {
  readonly kind: "limited_swiglu";
  readonly alpha: number;
  readonly limit: number;
}

/** The steps around. */
export interface ExpertFusion {
  /** x is normalised first, with weight[H]; the tensor x stays as it is. */
  readonly norm?: RmsNormSpec | undefined;
  /** May be `out` itself, and must not overlap it otherwise. */
  readonly addTo?: Tensor | undefined;
}
