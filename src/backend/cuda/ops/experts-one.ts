import type { FloatDType } from "../../../base/dtype.ts";
import type { ExpertFusion, ExpertSpec, ExpertWeights } from "../../experts.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CONSTANTS } from "./activation.ts";
import {
  activationArguments,
  type ExpertsForm,
  type ExpertsWeight,
  expertsWeight,
  FORM_KEYS,
  formKey,
  formMacros,
  formOfExperts,
} from "./experts-product.ts";
import { CHOICE_CONSTANTS } from "./experts-route.ts";
import { KernelVariants, WARP } from "./kernel-variants.ts";

const ONE_WARPS = 8;
/** Fragments of 16 rows of a CTA, and pieces of each that a lane has loads under way for. */
const SHAPES = {
  dense: { up: { FRAGMENTS: 1, STAGES: 8 }, down: { FRAGMENTS: 1, STAGES: 9 } },
  mxfp4: { up: { FRAGMENTS: 1, STAGES: 3 }, down: { FRAGMENTS: 1, STAGES: 6 } },
  fp8: { up: { FRAGMENTS: 1, STAGES: 4 }, down: { FRAGMENTS: 1, STAGES: 6 } },
} as const;
/** The most of shared memory for what is activated. */
const MAX_SHARED_BYTES = 64 * 1024;
const ELEMENT_BYTES = 2;

const ONE = {
  file: "experts_one.cu",
  constants: { ONE_WARPS, ...CHOICE_CONSTANTS, ...ACTIVATION_CONSTANTS },
  entry: "experts_one",
  pointers: [
    ...(["activated", "chosen", "weights", "logits", "router_bias", "x", "gamma"] as const),
    ...(["matrices", "scales", "biases"] as const),
  ],
  scalars: ["k", "softmax_over_all", "outputs", "activation", "alpha", "limit", "eps"],
} as const;
const SUM = {
  file: "experts_one_sum.cu",
  constants: { ONE_WARPS, MAX_PER_TOKEN: CHOICE_CONSTANTS.MAX_PER_TOKEN },
  entry: "experts_one_sum",
  pointers: [
    ...(["out", "added", "activated", "chosen", "weights"] as const),
    ...(["matrices", "scales", "biases"] as const),
  ],
  scalars: ["k", "outputs"],
} as const;

/** Memory between the two launches. */
export interface OneScratch {
  /** [k, I]. */
  readonly activated: Tensor;
  /** int32 [k] and float32 [k]. */
  readonly chosen: Tensor;
  readonly weights: Tensor;
}

/** A mixture of experts for one token, `experts_one.cu` and `experts_one_sum.cu`. */
export class ExpertsOne {
  readonly #one: KernelVariants<typeof ONE>;
  readonly #sum: KernelVariants<typeof SUM>;

  constructor(library: KernelLibrary, dtype: FloatDType, options: KernelOptions) {
    this.#one = new KernelVariants(library, ONE, dtype, options);
    this.#sum = new KernelVariants(library, SUM, dtype, options);
  }

  units(count: number, hidden: number, intermediate: number, form: ExpertsForm): KernelUnit[] {
    return [
      this.#one.unit({ ...macros(form, hidden, "up"), EXPERTS: count }),
      this.#sum.unit(macros(form, intermediate, "down")),
    ];
  }

  /** True if shared memory holds what the token's experts activate. */
  static takes({ down }: ExpertWeights, { perToken }: ExpertSpec): boolean {
    return perToken * down.shape[1] * ELEMENT_BYTES <= MAX_SHARED_BYTES;
  }

  launch(
    stream: number,
    out: Tensor,
    x: Tensor,
    logits: Tensor,
    weights: ExpertWeights,
    { perToken: k, softmaxOver, activation }: ExpertSpec,
    { norm, addTo }: ExpertFusion,
    scratch: OneScratch,
  ): void {
    const { count, routerBias, gateUpBias, downBias } = weights;
    const [gateUp, down] = [expertsWeight(weights.gateUp), expertsWeight(weights.down)];
    const [hidden, intermediate] = [x.dim(1), down.shape[1]];
    const up = this.#one.get(key(gateUp, count), {
      ...macros(formOfExperts(gateUp), hidden, "up"),
      EXPERTS: count,
    });
    const upTiles = Math.ceil(intermediate / (8 * SHAPES[gateUp.format].up.FRAGMENTS));
    up.launch(stream, upTiles, k, 1, ONE_WARPS * WARP, 0, {
      ...{ ...scratch, ...matrixArguments(gateUp, gateUpBias), ...activationArguments(activation) },
      ...{ logits, router_bias: routerBias ?? null, x, gamma: norm?.weight ?? null, eps: norm?.eps ?? 0 },
      ...{ k, softmax_over_all: softmaxOver === "all" ? 1 : 0, outputs: intermediate },
    });
    const sum = this.#sum.get(key(down), macros(formOfExperts(down), intermediate, "down"));
    const downTiles = Math.ceil(hidden / (16 * SHAPES[down.format].down.FRAGMENTS));
    sum.launch(stream, downTiles, 1, 1, ONE_WARPS * WARP, k * intermediate * ELEMENT_BYTES, {
      ...{ ...scratch, ...matrixArguments(down, downBias), out, added: addTo ?? null, k, outputs: hidden },
    });
  }
}

function matrixArguments(weight: ExpertsWeight, bias: Tensor | undefined) {
  const scales = weight.format === "dense" ? null : weight.scales;
  return { matrices: weight.data, scales, biases: bias ?? null };
}

function key(weight: ExpertsWeight, count = 0): number {
  return (weight.shape[1] * 2048 + count) * FORM_KEYS + formKey(formOfExperts(weight));
}

function macros(form: ExpertsForm, inFeatures: number, product: "up" | "down"): Macros {
  return {
    IN_FEATURES: inFeatures,
    ...formMacros(form, inFeatures),
    ...SHAPES[form.format][product],
  };
}
