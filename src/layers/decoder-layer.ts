import type { LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import type { ParameterSpec } from "../base/parameters.ts";
import { Attention, type AttentionShape } from "./attention.ts";
import type { ForwardContext, Parameters } from "./layer.ts";
import { GatedMlp, type MlpShape } from "./mlp.ts";
import { RmsNorm } from "./norm.ts";

export interface DecoderLayerShape {
  readonly attention: AttentionShape;
  readonly mlp: MlpShape;
  readonly normEps: number;
}

/** Pre-norm transformer block. The residual stream is kept apart from the branch output, so that norms can fuse the sum. */
export class DecoderLayer {
  readonly #inputNorm: RmsNorm;
  readonly #attention: Attention;
  readonly #mlpNorm: RmsNorm;
  readonly #mlp: GatedMlp;

  constructor(parameters: Parameters, name: string, shape: DecoderLayerShape, cosSin: Tensor) {
    this.#inputNorm = new RmsNorm(parameters, `${name}.inputNorm`, shape.normEps);
    this.#attention = new Attention(parameters, `${name}.attention`, shape.attention, cosSin);
    this.#mlpNorm = new RmsNorm(parameters, `${name}.mlpNorm`, shape.normEps);
    this.#mlp = new GatedMlp(parameters, `${name}.mlp`, shape.mlp);
  }

  /**
   * Adds `branch`[T, H], the output of the layer before (undefined for the first), to `residual`[T, H], and leaves this
   * layer's own output, not yet added, in `out`[T, H]. `out` may be `branch`.
   */
  forward(
    context: ForwardContext,
    out: Tensor,
    residual: Tensor,
    branch: Tensor | undefined,
    cache: LayerCache,
  ): void {
    const { backend } = context;
    if (branch === undefined) this.#inputNorm.forward(backend, out, residual);
    else this.#inputNorm.addForward(backend, out, residual, branch);
    this.#attention.forward(context, out, out, cache);
    this.#mlpNorm.addForward(backend, out, residual, out);
    this.#mlp.forward(context, out, out);
  }

  static parameters(name: string, source: string, shape: DecoderLayerShape): ParameterSpec[] {
    const { hiddenSize } = shape.attention;
    return [
      ...RmsNorm.parameters(`${name}.inputNorm`, `${source}.input_layernorm`, hiddenSize),
      ...Attention.parameters(`${name}.attention`, `${source}.self_attn`, shape.attention),
      ...RmsNorm.parameters(`${name}.mlpNorm`, `${source}.post_attention_layernorm`, hiddenSize),
      ...GatedMlp.parameters(`${name}.mlp`, `${source}.mlp`, shape.mlp),
    ];
  }
}
