import type { FloatDType } from "../../../base/dtype.ts";
import type { LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { Kernel } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";
import {
  blockColumns,
  factorBytes,
  formDefines,
  ORDER_CONSTANTS,
  type QuantisedForm,
  type QuantisedWeight,
  STRIP_BLOCK_BYTES,
  STRIP_ROWS,
} from "./quantised-form.ts";
import type { SmallLinearOptions } from "./small-linear.ts";
import { WeightPlans } from "./weight-plans.ts";

/** Tokens that a product can have. */
export const MAX_FEW_TOKENS = 32;
/** Tokens of one mma. */
const TOKEN_BLOCK = 8;
/** Warps that fetch: one codes, one x. */
const FETCH_WARPS = 2;
const QUANTISED_MAX_STAGES = 32;
/** Barriers: two a stage, two for each of two buffers of x, one for the norm's weight. */
const BARRIER_BYTES = (2 * QUANTISED_MAX_STAGES + 5) * 8;
/** Bytes of stages that keep enough on its way, and the part of shared memory that they may have before x has its share. */
const LEAST_BYTES = 48 * 1024;
const LEAST_SHARE = 1 / 4;
/** Floats between rows of sums, and bytes between those of x, so that they lie in different banks. */
const SUM_PADDING = 4;
const X_PADDING = 16;
/** Tiles whose sums a thread keeps at most while x comes in segments, by token blocks. */
const MOST_KEPT: Readonly<Record<number, number>> = { 1: 8, 2: 8, 4: 4 };
/** The logarithm of a group that is a whole row: every column is in group 0. */
const WHOLE_ROW_SHIFT = 31;

const LINEAR_QUANTISED = {
  file: "linear_quantised.cu",
  constants: {
    ...{ QUANTISED_MAX_STAGES, SUM_PADDING, X_PADDING },
    ...ORDER_CONSTANTS,
    ...ACTIVATION_CONSTANTS,
  },
  entry: "linear_quantised",
  pointers: ["out", "x", "weight", "scales", "zeros", "units", "gamma", "bias", "residual"],
  scalars: [
    "tokens",
    "inputs",
    "outputs",
    "tiles",
    "segment",
    "x_buffers",
    "stages",
    "group_size",
    "group_shift",
    "groups",
    "block_rows",
    "activation",
    "eps",
  ],
} as const;

/** What a plan depends on. */
export interface FewShape {
  readonly outFeatures: number;
  readonly inFeatures: number;
  readonly tokens: number;
  readonly norm: boolean;
  readonly gated: boolean;
  readonly floatOut: boolean;
}

/** Tells shapes apart that a weight can be multiplied in. */
export function fewKey({ tokens, norm, gated, floatOut }: FewShape): number {
  return tokens * 8 + (norm ? 1 : 0) + (gated ? 2 : 0) + (floatOut ? 4 : 0);
}

/** How a product is computed. */
export interface FewPlan {
  readonly tokenBlocks: number;
  /** Warps that multiply, and blocks of columns that each takes of a stage. */
  readonly warps: number;
  readonly warpBlocks: number;
  /** Strips of a tile. */
  readonly strips: 1 | 2;
  readonly tiles: number;
  readonly blocks: number;
  /** Stages of codes that are on their way or in use. */
  readonly stages: number;
  /** Columns of x that are in shared memory at a time, how often, and tiles that are computed with them. */
  readonly segment: number;
  readonly buffers: number;
  readonly kept: number;
  readonly sharedBytes: number;
}

interface Planned {
  readonly plan: FewPlan;
  readonly kernel: Kernel<ArgumentsOf<typeof LINEAR_QUANTISED>>;
}

/** Products of few tokens by quantised weights, with what surrounds them in one kernel: `linear_quantised.cu`. */
export class QuantisedLinear {
  readonly #kernels: KernelVariants<typeof LINEAR_QUANTISED>;
  readonly #plans = new WeightPlans<QuantisedWeight, Planned>();

  constructor(
    library: KernelLibrary,
    dtype: FloatDType,
    private readonly options: SmallLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_QUANTISED, dtype, options);
  }

  /** What a product needs compiled: nothing where the kernel cannot take it. */
  units(shape: FewShape, form: QuantisedForm): KernelUnit[] {
    const plan = planFew(shape, form, this.options);
    return plan === undefined ? [] : [this.#kernels.unit(defines(form, plan, shape))];
  }

  /** Loads what a product of so many tokens launches, which capturing forbids. */
  load(weight: QuantisedWeight, form: QuantisedForm, shape: FewShape): void {
    this.#find(weight, form, shape);
  }

  /**
   * Enqueues `Backend.linear`, whose checks have passed, if it is one that the kernel can take; else false. Of a permuted weight,
   * x has its columns in the order of codes.
   */
  launch(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: QuantisedWeight,
    form: QuantisedForm,
    { norm, bias, activation, addTo }: LinearFusion,
  ): boolean {
    if (x.address % VECTOR_BYTES !== 0) return false;
    if (norm !== undefined && norm.weight.address % VECTOR_BYTES !== 0) return false;
    const [outFeatures, inFeatures] = weight.shape;
    const [tokens, gated] = [x.dim(0), activation?.gated ?? false];
    const floatOut = out.dtype === "float32";
    const shape = { outFeatures, inFeatures, tokens, gated, norm: norm !== undefined, floatOut };
    const planned = this.#find(weight, form, shape);
    if (planned === undefined) return false;
    const { plan, kernel } = planned;
    const { groupSize, groups, blockRows } = form;
    kernel.launch(stream, plan.blocks, 1, 1, (plan.warps + FETCH_WARPS) * WARP, plan.sharedBytes, {
      ...{ out, x, weight: weight.data, scales: form.factors, zeros: form.zeros ?? null },
      units: form.units ?? null,
      ...{ gamma: norm?.weight ?? null, bias: bias ?? null, residual: addTo ?? null },
      ...{ tokens, inputs: inFeatures, outputs: gated ? outFeatures / 2 : outFeatures },
      ...{ tiles: plan.tiles, segment: plan.segment, x_buffers: plan.buffers, stages: plan.stages },
      ...{ group_size: groupSize, groups, block_rows: blockRows },
      group_shift: groups === 1 ? WHOLE_ROW_SHIFT : Math.log2(groupSize),
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
      eps: norm?.eps ?? 0,
    });
    return true;
  }

  #find(weight: QuantisedWeight, form: QuantisedForm, shape: FewShape): Planned | undefined {
    return this.#plans.get(weight, fewKey(shape), () => {
      const plan = planFew(shape, form, this.options);
      return plan && { plan, kernel: this.#kernels.of(defines(form, plan, shape)) };
    });
  }
}

/**
 * Warps that multiply, and blocks of columns that each takes of a stage. Widening 4 bits is mostly waiting, which more warps do
 * meanwhile, as long as there are registers for their sums.
 */
function warpsOf(bits: 4 | 8, tokenBlocks: number): { readonly warps: number; readonly warpBlocks: number } {
  if (bits === 8) return { warps: 8, warpBlocks: 1 };
  return tokenBlocks === 1 ? { warps: 16, warpBlocks: 1 } : { warps: 8, warpBlocks: 2 };
}

/** Columns of a stage and of a block's part that shares a scale, scales of a stage, and bytes of a strip in one. */
function stageOf(form: QuantisedForm, stageBlocks: number) {
  const { bits, groupSize, groups } = form;
  const block = blockColumns(bits);
  const chunk = stageBlocks * block;
  const sub = groups === 1 ? block : Math.min(groupSize, block);
  const stageGroups = groups === 1 ? 1 : Math.max(1, chunk / groupSize);
  const stripBytes = stageBlocks * STRIP_BLOCK_BYTES + factorBytes(form, chunk, VECTOR_BYTES);
  return { chunk, sub, stageGroups, stripBytes };
}

function defines(form: QuantisedForm, plan: FewPlan, { gated, floatOut }: FewShape): Macros {
  const { warps, warpBlocks } = plan;
  const { sub, stageGroups } = stageOf(form, warps * warpBlocks);
  return {
    ...{ ...formDefines(form), WARPS: warps, WARP_BLOCKS: warpBlocks, SUB: sub, STAGE_GROUPS: stageGroups },
    ...{ TOKEN_BLOCKS: plan.tokenBlocks, KEPT: plan.kept, STRIPS: plan.strips },
    ...{ GATED: gated ? 1 : 0, OUT_FLOAT: floatOut ? 1 : 0 },
  };
}

/** Undefined for products that the kernel cannot take. */
export function planFew(
  { outFeatures, inFeatures, tokens, norm, gated }: FewShape,
  form: QuantisedForm,
  { smCount, sharedBytesPerBlock }: Pick<SmallLinearOptions, "smCount" | "sharedBytesPerBlock">,
): FewPlan | undefined {
  if (!form.ordered || tokens > MAX_FEW_TOKENS) return undefined;
  if (gated && outFeatures % (2 * STRIP_ROWS) !== 0) return undefined;
  const tokenBlocks = 2 ** Math.ceil(Math.log2(Math.ceil(tokens / TOKEN_BLOCK)));
  const { warps, warpBlocks } = warpsOf(form.bits, tokenBlocks);
  const { chunk, stripBytes } = stageOf(form, warps * warpBlocks);
  const strips = gated || outFeatures / (2 * STRIP_ROWS) >= smCount ? 2 : 1;
  const tiles = Math.ceil(outFeatures / (strips * STRIP_ROWS));
  const rounds = Math.ceil(tiles / smCount);
  const blocks = Math.min(tiles, smCount);
  const stageBytes = strips * stripBytes;
  const sums = 2 * warps * tokenBlocks * TOKEN_BLOCK * (strips * STRIP_ROWS + SUM_PADDING) * 4;
  const squares = tokenBlocks * TOKEN_BLOCK * warps * 4;
  const fixed = Math.ceil((BARRIER_BYTES + squares + sums) / 128) * 128 + (norm ? 2 * inFeatures : 0);
  const bytesOfX = (columns: number) => tokens * (columns * 2 + X_PADDING);
  const wanted = Math.min(QUANTISED_MAX_STAGES, rounds * Math.ceil(inFeatures / chunk));
  const least = Math.min(
    wanted,
    Math.ceil(Math.min(LEAST_BYTES, LEAST_SHARE * sharedBytesPerBlock) / stageBytes),
  );
  const common = { tokenBlocks, warps, warpBlocks, strips, tiles, blocks } as const;
  // A block takes all of a multiprocessor's memory that it has a use for. Where two fit, some multiprocessors get two blocks of a
  // product and some none.
  const whole = fixed + bytesOfX(inFeatures);
  const most = Math.floor((sharedBytesPerBlock - whole) / stageBytes);
  if (most >= least) {
    const stages = Math.min(wanted, most);
    const sharedBytes = whole + stages * stageBytes;
    return { ...common, stages, segment: inFeatures, buffers: 1, kept: 1, sharedBytes };
  }
  const buffers = 2;
  const room = sharedBytesPerBlock - fixed - least * stageBytes;
  const widest = Math.floor((room / tokens / buffers - X_PADDING) / 2 / chunk) * chunk;
  if (widest < chunk) return undefined;
  const segment = Math.ceil(inFeatures / Math.ceil(inFeatures / widest) / chunk) * chunk;
  const kept = 2 ** Math.ceil(Math.log2(Math.min(MOST_KEPT[tokenBlocks]!, rounds)));
  const taken = fixed + buffers * bytesOfX(segment);
  const stages = Math.min(wanted, Math.floor((sharedBytesPerBlock - taken) / stageBytes));
  const sharedBytes = taken + stages * stageBytes;
  return { ...common, stages, segment, buffers, kept, sharedBytes };
}
