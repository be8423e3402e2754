import type { RmsNormSpec } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { LinearInput } from "./linear.ts";
import type { Parameters } from "./parameters.ts";

/** Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019). */
export class RmsNorm implements RmsNormSpec {
  readonly weight: Tensor;

  /** @param source the checkpoint's name without `.weight`. */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    size: number,
    readonly eps: number,
  ) {
    const shape = [size];
    const sources = [{ name: `${source}.weight`, shape }];
    this.weight = parameters.get({ name: `${name}.weight`, shape, sources, dummy: "ones" });
  }

  /** norm(x[T, H]), computed where a product takes it in. */
  of(x: Tensor): LinearInput {
    return { x, norm: this };
  }
}
