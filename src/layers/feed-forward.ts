import type { Tensor } from "../backend/tensor.ts";
import type { ForwardContext } from "./forward-context.ts";
import type { LinearInput } from "./linear.ts";

/** The part of a block that works on each token by itself. */
export interface FeedForward {
  /** residual[T, H] += feedForward(x[T, H]). */
  addTo(context: ForwardContext, residual: Tensor, x: LinearInput): void;
}
