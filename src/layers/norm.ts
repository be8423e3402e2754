import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import type { Parameters } from "./layer.ts";

/** Root-mean-square normalisation over the last dimension (Zhang & Sennrich 2019). */
export class RmsNorm {
  readonly weight: Tensor;

  constructor(
    parameters: Parameters,
    name: string,
    readonly eps: number,
  ) {
    this.weight = parameters.get(`${name}.weight`);
  }

  /** out[T, H] = norm(x[T, H]). */
  forward(backend: Backend, out: Tensor, x: Tensor): void {
    backend.rmsNorm(out, x, this.weight, this.eps);
  }

  /** residual += x, then out = norm(residual); `out` may be `x`. */
  addForward(backend: Backend, out: Tensor, residual: Tensor, x: Tensor): void {
    backend.addRmsNorm(out, residual, x, this.weight, this.eps);
  }

  static parameters(name: string, source: string, size: number): ParameterSpec[] {
    const shape = [size];
    return [{ name: `${name}.weight`, shape, sources: [{ name: `${source}.weight`, shape }], dummy: "ones" }];
  }
}
