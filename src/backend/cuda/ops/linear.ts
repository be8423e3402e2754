import type { FloatDType } from "../../../base/dtype.ts";
import { DeviceError } from "../../../base/errors.ts";
import type { LinearFusion, ModelShape, RmsNormSpec } from "../../backend.ts";
import { checkLinear } from "../../checks.ts";
import { byteLengthOf, type DeviceBuffer, type Tensor } from "../../tensor.ts";
import type { DenseWeight, Weight } from "../../weight.ts";
import type { Gemm } from "../gemm.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import type { ActivationOps } from "./activation.ts";
import { LARGE_ALWAYS_TOKENS, type LargeLinear } from "./large-linear.ts";
import type { LinearWay, LinearWays } from "./linear-ways.ts";
import type { NormOps } from "./norm.ts";
import { isQuantised, type QuantisedWeight } from "./quantised-form.ts";
import type { QuantisedOps } from "./quantised-ops.ts";
import { MAX_SMALL_TOKENS, type SmallLinear } from "./small-linear.ts";
import type { WgmmaLinear } from "./wgmma-linear.ts";
import { MAX_WGMMA_TOKENS } from "./wgmma-tiles.ts";

export interface LinearParts {
  /** For few tokens, where the GPU has what it needs. */
  readonly small: SmallLinear | undefined;
  /** For many tokens, where the GPU has what it needs. */
  readonly large: LargeLinear | undefined;
  /** For some hundred, on Hopper, with what chooses between it and cuBLASLt. */
  readonly hopper: { readonly wgmma: WgmmaLinear; readonly ways: LinearWays } | undefined;
  /** For weights that are quantised. */
  readonly quantised: QuantisedOps;
  readonly gemm: Gemm;
  readonly norm: NormOps;
  readonly activation: ActivationOps;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

/**
 * `Backend.linear`: one kernel for few tokens, or on Hopper for some hundred; else from parts: a norm kernel ahead of the
 * product, the bias and the sum in cuBLASLt's own epilogue, an activation kernel after it, or for many tokens a kernel of product and
 * activation. By quantised weights, products of few tokens are one kernel, and those of more are by the weight's elements, which
 * another kernel writes first. So a sum costs no node of its own and is rounded once, from float32.
 */
export class LinearOps {
  readonly #normed: Scratch;
  readonly #gateUp: Scratch;

  constructor(
    private readonly dtype: FloatDType,
    private readonly parts: LinearParts,
  ) {
    this.#normed = new Scratch(parts.allocate);
    this.#gateUp = new Scratch(parts.allocate);
  }

  /** See `Backend.linear`. @throws DeviceError for weights that only experts have */
  linear(stream: number, out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion): void {
    const { m } = checkLinear(this.dtype, out, x, weight, fusion);
    if (m === 0) return;
    if (isQuantised(weight)) {
      this.#quantised(stream, out, x, weight, fusion);
      return;
    }
    if (weight.format !== "dense")
      throw new DeviceError(
        `this device has no kernels for products by ${weight.format} weights; device "cpu" multiplies by them`,
      );
    const { small, hopper } = this.parts;
    if (small?.launch(stream, out, x, weight, fusion)) return;
    this.#run(stream, hopper?.ways.find(out, x, weight, fusion), out, x, weight, fusion);
  }

  /** Units for the products of a layer of these sizes, for more than a few tokens. */
  units(shape: ModelShape): KernelUnit[] {
    return this.parts.hopper?.ways.units(shape) ?? [];
  }

  /** Tells cuBLASLt's tuner of the products so far that other kernels took, so that it is at its best when compared with. */
  foresee(): void {
    const inputType = this.dtype;
    this.parts.hopper?.ways.visit(({ inFeatures, outFeatures, floatOut }, weight, { bias, addTo }) => {
      const outputType = floatOut ? "float32" : this.dtype;
      const added = { bias: bias !== undefined, addTo: addTo !== undefined };
      this.parts.gemm.foresee({ inFeatures, outFeatures, inputType, outputType, ...added }, weight);
    });
  }

  /** Finds the fastest way at each of these token counts for every product so far, once cuBLASLt's algorithms are tuned. */
  tune(stream: number, tokenCounts: readonly number[]): void {
    const { small, hopper } = this.parts;
    const counts = tokenCounts.filter((tokens) => small === undefined || tokens > MAX_SMALL_TOKENS);
    hopper?.ways.tune(counts, (...product) => this.#run(stream, ...product));
    this.parts.quantised.load(tokenCounts);
  }

  #run(
    stream: number,
    way: LinearWay | undefined,
    out: Tensor,
    x: Tensor,
    weight: DenseWeight,
    fusion: LinearFusion,
  ): void {
    const { wgmma } = this.parts.hopper ?? {};
    if (wgmma === undefined || way === undefined) {
      this.#compose(stream, out, x, weight, fusion);
      return;
    }
    this.#reserve(Math.min(x.dim(0), MAX_WGMMA_TOKENS), weight, fusion);
    if (way.normKernel && fusion.norm !== undefined) {
      const { norm, ...rest } = fusion;
      wgmma.launch(stream, way.plan, out, this.#norm(stream, x, norm), weight, rest);
    } else wgmma.launch(stream, way.plan, out, x, weight, fusion);
  }

  /** Takes the memory of a product in parts: one of fewer tokens may be run so, when capturing lets nothing be allocated. */
  #reserve(tokens: number, { shape: [n, k] }: DenseWeight, { norm, activation }: LinearFusion): void {
    if (norm !== undefined) this.#normed.atLeast(byteLengthOf(this.dtype, [tokens, k]));
    if (activation?.gated) this.#gateUp.atLeast(byteLengthOf(this.dtype, [tokens, n]));
  }

  /** By a weight that is quantised: in one kernel, with the norm one ahead of it, or by the weight's elements. */
  #quantised(stream: number, out: Tensor, x: Tensor, weight: QuantisedWeight, fusion: LinearFusion): void {
    const { quantised } = this.parts;
    const { norm, ...rest } = fusion;
    let [input, ahead] = [x, fusion];
    if (norm !== undefined && !quantised.takesNorm(x.dim(0), weight))
      [input, ahead] = [this.#norm(stream, x, norm), rest];
    input = quantised.permute(stream, input, weight);
    if (quantised.launch(stream, out, input, weight, ahead)) return;
    this.#compose(stream, out, input, quantised.dequantise(stream, weight), ahead);
  }

  #compose(stream: number, out: Tensor, x: Tensor, weight: DenseWeight, fusion: LinearFusion): void {
    const { norm, bias, activation, addTo } = fusion;
    const input = norm === undefined ? x : this.#norm(stream, x, norm);
    const [m, n] = [x.dim(0), weight.shape[0]];
    const { large } = this.parts;
    // The first product of many tokens also allocates what one of fewer, which comes in parts, will need.
    if (large !== undefined && activation?.gated)
      this.#gateUp.atLeast(byteLengthOf(this.dtype, [Math.min(m, LARGE_ALWAYS_TOKENS - 1), n]));
    if (large?.launch(stream, out, input, weight, { bias, activation, addTo })) return;
    const y = activation?.gated ? this.#gateUp.tensor(this.dtype, [m, n]) : out;
    this.parts.gemm.multiply(y, input, weight.data, bias, addTo);
    if (activation?.gated) this.parts.activation.gatedActivation(stream, out, y, activation.kind);
    else if (activation !== undefined) this.parts.activation.activation(stream, out, out, activation.kind);
  }

  /** The normalised x, in memory that the next one overwrites. */
  #norm(stream: number, x: Tensor, { weight, eps }: RmsNormSpec): Tensor {
    const normed = this.#normed.tensor(this.dtype, x.shape);
    this.parts.norm.rmsNorm(stream, normed, x, weight, eps);
    return normed;
  }
}
