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
  formDefines,
  ORDER_CONSTANTS,
  type QuantisedForm,
  type QuantisedWeight,
  ScaleKind,
  STRIP_BLOCK_BYTES,
  STRIP_ROWS,
} from "./quantised-form.ts";
import { type FewShape, fewKey } from "./quantised-linear.ts";
import type { SmallLinearOptions } from "./small-linear.ts";
import { WeightPlans } from "./weight-plans.ts";

/** Tokens that a product can have. */
export const MAX_SPLIT_TOKENS = 16;
/** One is multiplied by `linear_quantised.cu`, which needs no sums of several CTAs. */
export const LEAST_SPLIT_TOKENS = 2;
/** Tokens of one mma. */
const TOKEN_BLOCK = 8;
const WARPS = 12;
const TILE_STRIPS = 2;
/** Blocks of columns of a stage. */
const STAGE_BLOCKS = 2;
/** Stages of a warp's ring, as shared memory allows. */
const STAGES = [4, 3] as const;
/** Parts of the columns, a CTA of a team each, by token blocks: the first that fit. More tokens are more of x to fetch. */
const SPLITS: Readonly<Record<number, readonly number[]>> = { 1: [2, 4, 8], 2: [4, 8, 2] };
/** Teams of a cluster, by token blocks: they fetch x for each other, which takes a larger cluster. */
const TEAMS: Readonly<Record<number, number>> = { 1: 1, 2: 2 };
/** CTAs that a cluster can have on every GPU. */
const MAX_CLUSTER = 8;
/** Share of a GPU's multiprocessors that clusters of more than two find together in their part of it. */
const CLUSTERED_SHARE = 0.92;
/** Ways to give warps the same number of things each. */
const WARP_DIVISORS = [1, 2, 3, 4, 6, 12];
/** Columns of x that a warp multiplies by the norm's weight at once. */
const NORM_COLUMNS = WARP * (VECTOR_BYTES / 2);
/** Two barriers: of x, and of the sums. */
const BARRIER_BYTES = 16;
/** Bytes between the rows of x, so that they lie in different banks. */
const X_PADDING = 16;
/** The logarithm of a group that is a whole row: every column is in group 0. */
const WHOLE_ROW_SHIFT = 31;

const LINEAR_QUANTISED_SPLIT = {
  file: "linear_quantised_split.cu",
  constants: { X_PADDING, ...ORDER_CONSTANTS, ...ACTIVATION_CONSTANTS },
  entry: "linear_quantised_split",
  pointers: ["out", "x", "weight", "scales", "zeros", "gamma", "bias", "residual"],
  scalars: [
    ...["tokens", "inputs", "outputs", "tiles", "slots", "column_parts", "columns", "norm_parts"],
    ...["group_shift", "groups", "activation", "eps"],
  ],
} as const;

/** How a product is cut; see `linear_quantised_split.cu`. */
export interface SplitPlan {
  readonly tokenBlocks: number;
  readonly splits: number;
  /** Teams of a cluster, and all. */
  readonly clusterTeams: number;
  readonly teams: number;
  readonly tiles: number;
  /** Tiles whose outputs a CTA has at most, and columns of x. */
  readonly slots: number;
  readonly columns: number;
  /** Warps that share a tile's columns, and a token's in the norm. */
  readonly columnParts: number;
  readonly normParts: number;
  readonly stages: number;
  readonly sharedBytes: number;
}

interface Planned {
  readonly plan: SplitPlan;
  readonly kernel: Kernel<ArgumentsOf<typeof LINEAR_QUANTISED_SPLIT>>;
}

/** Products of a few tokens by integers in groups, with what surrounds them in one kernel, on Hopper: `linear_quantised_split.cu`. */
export class QuantisedSplit {
  readonly #kernels: KernelVariants<typeof LINEAR_QUANTISED_SPLIT>;
  readonly #plans = new WeightPlans<QuantisedWeight, Planned>();

  constructor(
    library: KernelLibrary,
    dtype: FloatDType,
    private readonly options: SmallLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_QUANTISED_SPLIT, dtype, options);
  }

  /** Whether the kernel can take products of so many tokens by a weight. */
  takes(shape: FewShape, form: QuantisedForm): boolean {
    return planSplit(shape, form, this.options) !== undefined;
  }

  /** What a product needs compiled: nothing where the kernel cannot take it. */
  units(shape: FewShape, form: QuantisedForm): KernelUnit[] {
    const plan = planSplit(shape, form, this.options);
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
    for (const tensor of [x, norm?.weight, out, addTo])
      if (tensor !== undefined && tensor.address % VECTOR_BYTES !== 0) return false;
    const [outFeatures, inFeatures] = weight.shape;
    const [tokens, gated] = [x.dim(0), activation?.gated ?? false];
    const floatOut = out.dtype === "float32";
    const shape = { outFeatures, inFeatures, tokens, gated, norm: norm !== undefined, floatOut };
    const planned = this.#find(weight, form, shape);
    if (planned === undefined) return false;
    const { plan, kernel } = planned;
    const { groupSize, groups } = form;
    kernel.launch(stream, plan.teams, 1, plan.splits, WARPS * WARP, plan.sharedBytes, {
      ...{ out, x, weight: weight.data, scales: form.factors, zeros: form.zeros ?? null },
      ...{ gamma: norm?.weight ?? null, bias: bias ?? null, residual: addTo ?? null },
      ...{ tokens, inputs: inFeatures, outputs: gated ? outFeatures / 2 : outFeatures },
      ...{ tiles: plan.tiles, slots: plan.slots, column_parts: plan.columnParts, columns: plan.columns },
      norm_parts: plan.normParts,
      ...{ groups, group_shift: groups === 1 ? WHOLE_ROW_SHIFT : Math.log2(groupSize) },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
      eps: norm?.eps ?? 0,
    });
    return true;
  }

  #find(weight: QuantisedWeight, form: QuantisedForm, shape: FewShape): Planned | undefined {
    return this.#plans.get(weight, fewKey(shape), () => {
      const plan = planSplit(shape, form, this.options);
      return plan && this.#resident(plan, this.#kernels.of(defines(form, plan, shape)));
    });
  }

  /** As many clusters as run at once: one more, and the others are waited for twice. */
  #resident(plan: SplitPlan, kernel: Planned["kernel"]): Planned | undefined {
    const { clusterTeams, splits, sharedBytes } = plan;
    const most = clusterTeams * kernel.residentClusters(clusterTeams, splits, WARPS * WARP, sharedBytes);
    if (plan.teams <= most) return { plan, kernel };
    const slots = most === 0 ? Number.POSITIVE_INFINITY : slotsOf(plan.tiles, most, splits);
    return slots <= plan.slots ? { plan: { ...plan, teams: most }, kernel } : undefined;
  }
}

/** Undefined for products that the kernel cannot take. */
export function planSplit(
  { outFeatures, inFeatures, tokens, gated }: FewShape,
  form: QuantisedForm,
  { smCount, sharedBytesPerBlock }: Pick<SmallLinearOptions, "smCount" | "sharedBytesPerBlock">,
): SplitPlan | undefined {
  const isGrouped = form.scales === ScaleKind.groupHalves || form.scales === ScaleKind.groupBfloats;
  if (!form.ordered || !isGrouped || form.bits !== 4) return undefined;
  if (tokens < LEAST_SPLIT_TOKENS || tokens > MAX_SPLIT_TOKENS) return undefined;
  if (gated && outFeatures % (TILE_STRIPS * STRIP_ROWS) !== 0) return undefined;
  const block = blockColumns(form.bits);
  const blocks = inFeatures / block;
  const tokenBlocks = Math.ceil(tokens / TOKEN_BLOCK);
  const tiles = Math.ceil(outFeatures / (TILE_STRIPS * STRIP_ROWS));
  const scales = STAGE_BLOCKS * (block / subOf(form));
  const scaleBytes = STRIP_ROWS * (form.zeros === undefined ? 2 : 3);
  const stageBytes = TILE_STRIPS * (STAGE_BLOCKS * STRIP_BLOCK_BYTES + scales * scaleBytes);
  for (const splits of SPLITS[tokenBlocks]!) {
    if (splits > blocks) continue;
    const clusterTeams = Math.min(TEAMS[tokenBlocks]!, MAX_CLUSTER / splits);
    const share = splits * clusterTeams > 2 ? CLUSTERED_SHARE : 1;
    const clusters = Math.min(
      Math.ceil(tiles / clusterTeams),
      Math.floor((smCount * share) / (splits * clusterTeams)),
    );
    if (clusters === 0) continue;
    const teams = clusters * clusterTeams;
    const ownBlocks = Math.ceil(blocks / splits);
    const columnParts = partsOf(Math.ceil(tiles / teams), ownBlocks);
    const slots = slotsOf(tiles, teams, splits);
    const columns = ownBlocks * block;
    const tokensAtMost = tokenBlocks * TOKEN_BLOCK;
    // Fewer tokens are multiplied by the same kernel.
    const rows = tokensAtMost * (columns * 2 + X_PADDING) + columns * 2;
    const chunks = Math.ceil(columns / NORM_COLUMNS);
    const normParts = WARP_DIVISORS.findLast((parts) => parts <= chunks)!;
    const squares = chunks * tokensAtMost * 4;
    const sums = slots * tokenBlocks * splits * columnParts * WARP * 16;
    const control = Math.ceil((BARRIER_BYTES + splits * tokensAtMost * 4) / 128) * 128;
    for (const stages of STAGES) {
      const sharedBytes = control + sums + rows + squares + WARPS * stages * stageBytes;
      if (sharedBytes <= sharedBytesPerBlock)
        return {
          tokenBlocks,
          splits,
          clusterTeams,
          teams,
          tiles,
          slots,
          columns,
          columnParts,
          normParts,
          stages,
          sharedBytes,
        };
    }
  }
  return undefined;
}

function slotsOf(tiles: number, teams: number, splits: number): number {
  return Math.ceil(Math.ceil(tiles / teams) / splits);
}

/** Warps that share a tile's columns, so that a team's tiles keep all warps at work for the shortest time. */
function partsOf(tiles: number, blocks: number): number {
  const costOf = (parts: number) => Math.ceil((tiles * parts) / WARPS) * Math.ceil(blocks / parts);
  return WARP_DIVISORS.filter((parts) => parts <= blocks).reduce((best, each) =>
    costOf(each) < costOf(best) ? each : best,
  );
}

/** Columns between changes of the scale in a block. */
function subOf({ bits, groupSize, groups }: QuantisedForm): number {
  const block = blockColumns(bits);
  return groups === 1 ? block : Math.min(groupSize, block);
}

function defines(form: QuantisedForm, plan: SplitPlan, { gated, floatOut }: FewShape): Macros {
  return {
    ...{ ...formDefines(form), SUB: subOf(form), WARPS, STAGE_BLOCKS, STAGES: plan.stages },
    ...{ SPLITS: plan.splits, TEAMS: plan.clusterTeams, TOKEN_BLOCKS: plan.tokenBlocks },
    ...{ GATED: gated ? 1 : 0, OUT_FLOAT: floatOut ? 1 : 0 },
  };
}
