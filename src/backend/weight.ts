import type { Tensor } from "./tensor.ts";

/**
 * A matrix [N, K] as it is stored, to multiply by. What is beside `data` depends on the format (scales, zero points, an
 * order of rows), and so does the layout of `data` itself: layers pass weights on and never look inside, and the ops that
 * take one say which formats they can.
 */
export type Weight = DenseWeight;

/** One float an element, row-major, in the dtype of the activations that are multiplied by it. */
export interface DenseWeight {
  readonly format: "dense";
  /** N outputs, K inputs. */
  readonly shape: readonly [N: number, K: number];
  readonly data: Tensor;
}

/** The weight that a tensor [N, K] is. */
export function denseWeight(data: Tensor): DenseWeight {
  return { format: "dense", shape: [data.dim(0), data.dim(1)], data };
}
