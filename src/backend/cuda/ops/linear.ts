import type { FloatDType } from "../../../base/dtype.ts";
import type { LinearFusion } from "../../backend.ts";
import { checkLinear } from "../../checks.ts";
import { byteLengthOf, type DeviceBuffer, type Tensor } from "../../tensor.ts";
import type { Weight } from "../../weight.ts";
import type { Gemm } from "../gemm.ts";
import { Scratch } from "../scratch.ts";
import type { ActivationOps } from "./activation.ts";
import { LARGE_ALWAYS_TOKENS, type LargeLinear } from "./large-linear.ts";
import type { NormOps } from "./norm.ts";
import type { SmallLinear } from "./small-linear.ts";

export interface LinearParts {
  /** For few tokens, where the GPU has what it needs. */
  readonly small: SmallLinear | undefined;
  /** For many tokens, where the GPU has what it needs. */
  readonly large: LargeLinear | undefined;
  readonly gemm: Gemm;
  readonly norm: NormOps;
  readonly activation: ActivationOps;
  /** Device memory that the backend frees. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

/**
 * `Backend.linear`: one kernel for few tokens; else from parts: a norm kernel ahead of the product, the bias and the sum in
 * cuBLASLt's own epilogue, an activation kernel after it, or for many tokens a kernel of product and activation. So a sum
 * costs no node of its own and is rounded once, from float32.
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

  /** See `Backend.linear`. */
  linear(stream: number, out: Tensor, x: Tensor, weight: Weight, fusion: LinearFusion): void {
    const { m, n } = checkLinear(this.dtype, out, x, weight, fusion);
    if (m === 0) return;
    if (this.parts.small?.launch(stream, out, x, weight, fusion)) return;
    const { norm, bias, activation, addTo } = fusion;
    let input = x;
    if (norm !== undefined) {
      input = this.#normed.tensor(this.dtype, x.shape);
      this.parts.norm.rmsNorm(stream, input, x, norm.weight, norm.eps);
    }
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
}
