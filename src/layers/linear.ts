import type { Backend } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import type { Parameters } from "./layer.ts";

/** y[T, N] = x[T, K] · weight[N, K]ᵀ + bias[N]. Several projections of one input are merged by stacking their rows. */
export class Linear {
  readonly weight: Tensor;
  readonly bias: Tensor | undefined;

  constructor(parameters: Parameters, name: string) {
    this.weight = parameters.get(`${name}.weight`);
    this.bias = parameters.find(`${name}.bias`);
  }

  /** N. */
  get outputSize(): number {
    return this.weight.dim(0);
  }

  forward(backend: Backend, out: Tensor, x: Tensor): void {
    backend.linear(out, x, this.weight, this.bias);
  }

  /** `projections`: the checkpoint's name and output size of each merged projection. */
  static parameters(
    name: string,
    inputSize: number,
    projections: readonly (readonly [source: string, outputSize: number])[],
    bias: boolean,
  ): ParameterSpec[] {
    const outputSize = projections.reduce((sum, [, size]) => sum + size, 0);
    const weight: ParameterSpec = {
      name: `${name}.weight`,
      shape: [outputSize, inputSize],
      sources: projections.map(([source, size]) => ({ name: `${source}.weight`, shape: [size, inputSize] })),
      dummy: "normal",
    };
    if (!bias) return [weight];
    const sources = projections.map(([source, size]) => ({ name: `${source}.bias`, shape: [size] }));
    return [weight, { name: `${name}.bias`, shape: [outputSize], sources, dummy: "zeros" }];
  }
}
