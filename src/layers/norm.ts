import type { RmsNormSpec } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { Affine } from "../base/parameter-spec.ts";
import type { ForwardContext, OpContext } from "./forward-context.ts";
import type { LinearInput } from "./linear.ts";
import type { Parameters } from "./parameters.ts";

/** Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019). */
export class RmsNorm implements RmsNormSpec {
  readonly weight: Tensor;

  /**
   * @param source the checkpoint's name without `.weight`
   * @param affine what the weight is made of the stored one; default: it is that
   */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    size: number,
    readonly eps: number,
    affine?: Affine,
  ) {
    const shape = [size];
    const sources = [{ name: `${source}.weight`, shape, ...(affine && { affine }) }];
    this.weight = parameters.get({ name: `${name}.weight`, shape, sources, dummy: "ones" });
  }

  /** norm(x[T, H]), computed where a product takes it in. */
  of(x: Tensor): LinearInput {
    return { x, norm: this };
  }

  /** out[T, H] = norm(x[T, H]). */
  forward({ backend }: OpContext, out: Tensor, x: Tensor): void {
    backend.rmsNorm(out, x, this.weight, this.eps);
  }

  /** residual[T, H] += norm(x[T, H]), the sum times `scale` [1] if there is one. */
  addTo({ backend }: ForwardContext, residual: Tensor, x: Tensor, scale?: Tensor): void {
    backend.rmsNorm(residual, x, this.weight, this.eps, residual, scale);
  }
}

/** Normalisation to mean 0 and variance 1 over the last dimension (Ba et al. 2016), with a weight and a bias. */
export class LayerNorm {
  readonly #weight: Tensor;
  readonly #bias: Tensor;

  /** @param source the checkpoint's name without `.weight` and `.bias` */
  constructor(
    parameters: Parameters,
    name: string,
    source: string,
    size: number,
    readonly eps: number,
  ) {
    const shape = [size];
    const get = (part: "weight" | "bias", dummy: "ones" | "zeros") =>
      parameters.get({
        ...{ name: `${name}.${part}`, shape, dummy },
        sources: [{ name: `${source}.${part}`, shape }],
      });
    this.#weight = get("weight", "ones");
    this.#bias = get("bias", "zeros");
  }

  /** norm(x[T, H]), in memory of the workspace that the next one of the same room overwrites. */
  of({ backend, workspace }: OpContext, x: Tensor, room = "normed"): LinearInput {
    const normed = workspace.tensor(room, x.dtype, x.shape);
    backend.layerNorm(normed, x, this.#weight, this.#bias, this.eps);
    return { x: normed };
  }
}
