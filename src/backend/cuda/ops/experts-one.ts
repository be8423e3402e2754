import type { FloatDType } from "../../../base/dtype.ts";
import type { ExpertFusion, ExpertSpec, ExpertWeights } from "../../experts.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CONSTANTS } from "./activation.ts";
import {
  activationArguments,
  bitsOf,
  type ExpertsForm,
  type ExpertsForms,
  type ExpertsWeight,
  expertsWeight,
  FORM_KEYS,
  formatOf,
  formKey,
  formMacros,
  formOfExperts,
  matrixArguments,
} from "./experts-product.ts";
import { CHOICE_CONSTANTS } from "./experts-route.ts";
import { KernelVariants, WARP } from "./kernel-variants.ts";

const ONE_WARPS = 8;
/** Outputs of a tile. */
const TILE_OUTPUTS = 8;
/** By bits of a weight: steps of columns that a lane has loads under way for, at most, and CTAs that a multiprocessor has registers for. */
const SHAPES = {
  16: { STAGES: 8, ONE_CTAS: 2 },
  8: { STAGES: 4, ONE_CTAS: 2 },
  4: { STAGES: 3, ONE_CTAS: 3 },
} as const;
/** The most of shared memory for x: what every block may have without asking for it. */
const MAX_INPUT_BYTES = 40 * 1024;
/** The same for what is activated. */
const MAX_SHARED_BYTES = 64 * 1024;
const ELEMENT_BYTES = 2;

const ONE = {
  file: "experts_one.cu",
  constants: { ONE_WARPS, ...CHOICE_CONSTANTS, ...ACTIVATION_CONSTANTS },
  entry: "experts_one",
  pointers: [
    ...(["activated", "chosen", "weights", "logits", "router_bias", "expert_scales"] as const),
    ...(["x", "gamma", "matrices", "scales", "zeros", "biases"] as const),
  ],
  scalars: ["k", "softmax_over_all", "outputs", "activation", "alpha", "limit", "eps"],
} as const;
const SUM = {
  file: "experts_one_sum.cu",
  constants: { ONE_WARPS, MAX_PER_TOKEN: CHOICE_CONSTANTS.MAX_PER_TOKEN },
  entry: "experts_one_sum",
  pointers: [
    ...(["out", "added", "activated", "chosen", "weights"] as const),
    ...(["matrices", "scales", "zeros", "biases"] as const),
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

export interface ExpertsOneOptions extends KernelOptions {
  readonly smCount: number;
}

/** A mixture of experts for one token, `experts_one.cu` and `experts_one_sum.cu`. */
export class ExpertsOne {
  readonly #one: KernelVariants<typeof ONE>;
  readonly #sum: KernelVariants<typeof SUM>;

  constructor(
    library: KernelLibrary,
    dtype: FloatDType,
    private readonly options: ExpertsOneOptions,
  ) {
    this.#one = new KernelVariants(library, ONE, dtype, options);
    this.#sum = new KernelVariants(library, SUM, dtype, options);
  }

  units(count: number, hidden: number, intermediate: number, forms: ExpertsForms): KernelUnit[] {
    return [
      this.#one.unit({ ...macros(forms.gateUp, hidden), EXPERTS: count }),
      this.#sum.unit(macros(forms.down, intermediate)),
    ];
  }

  /** True if shared memory holds the token, and what its experts activate. */
  static takes({ gateUp, down }: ExpertWeights, { perToken }: ExpertSpec): boolean {
    const [up, last] = [expertsWeight(gateUp), expertsWeight(down)];
    return inputBytes(up) <= MAX_INPUT_BYTES && activatedBytes(last, perToken) <= MAX_SHARED_BYTES;
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
    const { count, routerBias, expertScales, gateUpBias, downBias } = weights;
    const [gateUp, down] = [expertsWeight(weights.gateUp), expertsWeight(weights.down)];
    const [hidden, intermediate] = [x.dim(1), down.shape[1]];
    const up = this.#one.get(key(gateUp, count), {
      ...macros(formOfExperts(gateUp), hidden),
      EXPERTS: count,
    });
    const upTiles = k * Math.ceil(intermediate / TILE_OUTPUTS);
    const upBlocks = Math.min(upTiles, SHAPES[bitsOf(formatOf(gateUp))].ONE_CTAS * this.options.smCount);
    up.launch(stream, upBlocks, 1, 1, ONE_WARPS * WARP, 0, {
      ...{ ...scratch, ...matrixArguments(gateUp, gateUpBias), ...activationArguments(activation) },
      ...{ logits, router_bias: routerBias ?? null, expert_scales: expertScales ?? null },
      ...{ x, gamma: norm?.weight ?? null, eps: norm?.eps ?? 0 },
      ...{ k, softmax_over_all: softmaxOver === "all" ? 1 : 0, outputs: intermediate },
    });
    const sum = this.#sum.get(key(down), macros(formOfExperts(down), intermediate));
    const downTiles = Math.ceil(hidden / TILE_OUTPUTS);
    sum.launch(stream, downTiles, 1, 1, ONE_WARPS * WARP, activatedBytes(down, k), {
      ...{ ...scratch, ...matrixArguments(down, downBias), out, added: addTo ?? null, k, outputs: hidden },
    });
  }
}

/** Columns that four lanes load at a time: 64 bytes. */
function stepColumns(weight: ExpertsWeight): number {
  return 512 / bitsOf(formatOf(weight));
}

/** Bytes of x in shared memory: of whole steps. */
function inputBytes(weight: ExpertsWeight): number {
  const step = stepColumns(weight);
  return Math.ceil(weight.shape[1] / step) * step * ELEMENT_BYTES;
}

/** Bytes of what k experts activate, in shared memory: of whole steps of all warps, each of which takes two at a time. */
function activatedBytes(weight: ExpertsWeight, k: number): number {
  const all = 2 * ONE_WARPS * stepColumns(weight) * ELEMENT_BYTES;
  return Math.ceil((k * inputBytes(weight)) / all) * all;
}

function key(weight: ExpertsWeight, count = 0): number {
  return (weight.shape[1] * 2048 + count) * FORM_KEYS + formKey(formOfExperts(weight));
}

function macros(form: ExpertsForm, inFeatures: number): Macros {
  return { IN_FEATURES: inFeatures, ...formMacros(form, inFeatures), ...SHAPES[bitsOf(form.format)] };
}
