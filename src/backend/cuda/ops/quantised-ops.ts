import type { LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight, Weight } from "../../weight.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { ACTIVATION_CODES } from "./activation.ts";
import type { Float8Linear } from "./float8-linear.ts";
import type { ModelProduct } from "./model-products.ts";
import { formOf, isQuantised, type QuantisedWeight } from "./quantised-form.ts";
import { type FewShape, MAX_FEW_TOKENS, type QuantisedLinear } from "./quantised-linear.ts";
import type { QuantisedSplit } from "./quantised-split.ts";
import type { QuantisedWeights } from "./quantised-weights.ts";
import { MAX_QUANTISED_TOKENS, type QuantisedWgmma, type TileShape } from "./quantised-wgmma.ts";

/** Tokens above which Hopper's kernel is the faster. */
const FEW_TOKENS = 8;
/** Tokens from which activations are made 8-bit floats, where they may be. */
const FLOAT8_TOKENS = 9;
/** As many as tiles for prompts are for. */
const MANY_TOKENS = 512;
/** Token counts whose kernels, loaded before anything is captured, are those of all others too: each few, and each tile. */
const LOADED_COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 96, 128, 192, MAX_QUANTISED_TOKENS, MANY_TOKENS];

export interface QuantisedParts {
  /** For few tokens; undefined where a product may not depend on how many there are. */
  readonly few: QuantisedLinear | undefined;
  /** For a few tokens by 4 bits, on Hopper; undefined elsewhere, and as above. */
  readonly split: QuantisedSplit | undefined;
  /** For some hundred, on Hopper; undefined elsewhere, and as above. */
  readonly some: QuantisedWgmma | undefined;
  /** For all but a few tokens by 8-bit floats, of activations made such; undefined where that may not be. */
  readonly float8: Float8Linear | undefined;
  readonly weights: QuantisedWeights;
}

/** How a model multiplies by a weight. */
interface Use {
  readonly gated: boolean;
  readonly floatOut: boolean;
  readonly activation: number;
}

/** Chooses the kernel of a product by a quantised weight. */
export class QuantisedOps {
  readonly #uses = new Map<QuantisedWeight, Use>();

  constructor(private readonly parts: QuantisedParts) {}

  /** What products by a weight, which needs no memory, have to have compiled, for all that `load` loads. */
  units(weight: QuantisedWeight, product: ModelProduct): KernelUnit[] {
    return LOADED_COUNTS.flatMap((tokens) => this.unitsOf({ ...product, tokens }, weight));
  }

  /** What a product of so many tokens needs compiled. */
  unitsOf(shape: FewShape & TileShape, weight: QuantisedWeight): KernelUnit[] {
    const { few, split, some, float8, weights } = this.parts;
    const [form, { tokens }] = [formOf(weight), shape];
    if (tokens >= FLOAT8_TOKENS && weight.format === "fp8" && float8?.takes(weight, form))
      return float8.units(shape);
    if (split?.takes(shape, form)) return [...weights.units(form), ...split.units(shape, form)];
    const product =
      tokens > FEW_TOKENS && some?.takes(tokens, weight, form)
        ? some.units(shape, form)
        : few?.units(shape, form);
    return [...weights.units(form), ...(product ?? [])];
  }

  /** See `Backend.prepareWeight`. */
  prepare(stream: number, weight: Weight): Weight {
    const { weights, float8 } = this.parts;
    // By what kernels multiply as it is, whatever the number of tokens, nobody multiplies as elements.
    if (isQuantised(weight))
      weights.prepare(stream, weight, !(weight.format === "fp8" && float8?.takes(weight, formOf(weight))));
    return weight;
  }

  /** Whether a product of so many tokens computes the norm itself. */
  takesNorm(tokens: number, weight: QuantisedWeight): boolean {
    if (weight.format === "grouped" && weight.permutation !== undefined) return false;
    if (this.#float8(tokens, weight) !== undefined || !this.#isSome(tokens, weight)) return true;
    return this.#isSplit(tokens, weight, { gated: true });
  }

  /** See `QuantisedWeights.permute`. */
  permute(stream: number, x: Tensor, weight: QuantisedWeight): Tensor {
    return this.parts.weights.permute(stream, x, weight);
  }

  /** Enqueues `Backend.linear`, whose checks have passed, of an x in the order of codes, if some kernel can take it; else false. */
  launch(stream: number, out: Tensor, x: Tensor, weight: QuantisedWeight, fusion: LinearFusion): boolean {
    const form = this.parts.weights.form(weight);
    this.#remember(out, weight, fusion);
    if (weight.format === "fp8" && this.#float8(x.dim(0), weight)?.launch(stream, out, x, weight, fusion))
      return true;
    const { few, split, some } = this.parts;
    const tokens = x.dim(0);
    const gated = fusion.activation?.gated ?? false;
    if (this.#isSplit(tokens, weight, { gated }) && split?.launch(stream, out, x, weight, form, fusion))
      return true;
    const kernel = this.#isSome(tokens, weight) && fusion.norm === undefined ? some : few;
    return kernel?.launch(stream, out, x, weight, form, fusion) ?? false;
  }

  /** See `QuantisedWeights.dequantise`. */
  dequantise(stream: number, weight: QuantisedWeight): DenseWeight {
    return this.parts.weights.dequantise(stream, weight);
  }

  /** Loads, for all weights that were multiplied by so far, the kernels for these numbers of tokens and for all up to some hundred. */
  load(tokenCounts: readonly number[]): void {
    const { few, split, some, weights } = this.parts;
    const counts = new Set([...LOADED_COUNTS, ...tokenCounts]);
    for (const [weight, use] of this.#uses) {
      const [outFeatures, inFeatures] = weight.shape;
      const form = weights.form(weight);
      for (const tokens of counts) {
        const shape = { outFeatures, inFeatures, tokens, ...use };
        const float8 = this.#float8(tokens, weight);
        if (float8 !== undefined && weight.format === "fp8") float8.load(weight, shape);
        else if (this.#isSplit(tokens, weight, use))
          for (const norm of [false, true]) split?.load(weight, form, { ...shape, norm });
        else if (this.#isSome(tokens, weight)) some?.load(weight, form, shape);
        // Of many tokens the norm is a kernel ahead, so that it may not have been seen.
        else if (tokens <= MAX_FEW_TOKENS)
          for (const norm of [false, true]) few?.load(weight, form, { ...shape, norm });
      }
    }
  }

  /** What takes a product of so many tokens, of activations made 8-bit floats. */
  #float8(tokens: number, weight: QuantisedWeight): Float8Linear | undefined {
    const { float8, weights } = this.parts;
    if (tokens < FLOAT8_TOKENS || weight.format !== "fp8") return undefined;
    return float8?.takes(weight, weights.form(weight)) ? float8 : undefined;
  }

  #isSplit(tokens: number, weight: QuantisedWeight, { gated }: Pick<Use, "gated">): boolean {
    const { split, weights } = this.parts;
    const [outFeatures, inFeatures] = weight.shape;
    const shape = { outFeatures, inFeatures, tokens, gated, norm: false, floatOut: false };
    return split?.takes(shape, weights.form(weight)) ?? false;
  }

  #isSome(tokens: number, weight: QuantisedWeight): boolean {
    const { some, weights } = this.parts;
    return tokens > FEW_TOKENS && some !== undefined && some.takes(tokens, weight, weights.form(weight));
  }

  #remember(out: Tensor, weight: QuantisedWeight, { activation }: LinearFusion): void {
    if (this.#uses.has(weight)) return;
    this.#uses.set(weight, {
      ...{ gated: activation?.gated ?? false, floatOut: out.dtype === "float32" },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
    });
  }
}
