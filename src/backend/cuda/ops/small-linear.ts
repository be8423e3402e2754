import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import type { LinearFusion } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import type { Kernel, KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { ACTIVATION_CODES, ACTIVATION_CONSTANTS } from "./activation.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** Tokens that a product can have: the columns of one mma. */
export const MAX_SMALL_TOKENS = 8;
/** Warps that multiply; one more fetches weights. */
export const LINEAR_WARPS = 8;
/** Columns that a warp takes at a time. */
const LINEAR_STEP = 32;
/** Bytes between the weight rows of a chunk in shared memory, and floats between those of partial sums. */
export const LINEAR_ROW_PADDING = 64;
export const LINEAR_SUM_PADDING = 4;
/** Columns of a chunk of weights: the first that divides the inputs, or else the first, and the last chunk has fewer. */
const CHUNKS = [512, 256] as const;
/** Steps of a warp, above which x does not stay in registers, and tokens whose x is then kept in shared memory. */
const MAX_KEPT_STEPS = 16;
const STAGED_TOKENS = 2;
/** Bytes of a multiprocessor's shared memory that the driver keeps for each block. */
const RESERVED_BYTES = 1024;
/** Alignment and barriers. */
const SLACK_BYTES = 256;

/** Constants of small_product.cuh, and the threads of a block of its kernels. */
export const SMALL_CONSTANTS = {
  ...{ LINEAR_WARPS, LINEAR_STEP, LINEAR_ROW_PADDING, LINEAR_SUM_PADDING },
  LINEAR_MAX_TOKENS: MAX_SMALL_TOKENS,
} as const;
export const SMALL_THREADS = (LINEAR_WARPS + 1) * WARP;

const LINEAR_SMALL = {
  file: "linear_small.cu",
  constants: { ...SMALL_CONSTANTS, ...ACTIVATION_CONSTANTS },
  entry: "linear_small",
  pointers: ["out", "x", "weight", "gamma", "bias", "residual"],
  scalars: ["tokens", "outputs", "tiles", "activation", "trigger_early", "eps"],
} as const;

/** The GPU's limits that the plan of a product depends on. */
export interface SmallLinearOptions extends KernelOptions {
  readonly smCount: number;
  /** Bytes of shared memory: most of a block, and of a multiprocessor. */
  readonly sharedBytesPerBlock: number;
  readonly sharedBytesPerSm: number;
}

/** A product's shape: a kernel is specialised by it, but for the number of outputs. */
export interface SmallShape {
  readonly outFeatures: number;
  readonly inFeatures: number;
  readonly norm: boolean;
  readonly gated: boolean;
  /** x of all tokens fits shared memory. */
  readonly staged: boolean;
}

/** The launch that computes a shape. */
export interface SmallPlan {
  readonly tileRows: number;
  readonly tiles: number;
  readonly chunk: number;
  /** Chunks of weights that are on their way or in use. */
  readonly stages: number;
  readonly blocks: number;
  readonly sharedBytes: number;
  /** Two blocks fit a multiprocessor, so that the next kernel's weights can be fetched early. */
  readonly shares: boolean;
}

/** Products of at most `MAX_SMALL_TOKENS` tokens with what surrounds them in one kernel, `linear_small.cu`. */
export class SmallLinear {
  readonly #kernels: KernelVariants<typeof LINEAR_SMALL>;
  readonly #planned = new Map<
    number,
    { readonly plan: SmallPlan; readonly kernel: Kernel<ArgumentsOf<typeof LINEAR_SMALL>> } | undefined
  >();

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly options: SmallLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, LINEAR_SMALL, dtype, options);
  }

  /** Units for products by [outFeatures, inFeatures]; none if the kernel cannot take them. */
  units(
    outFeatures: number,
    inFeatures: number,
    {
      norm = false,
      gated = false,
      floatOut = false,
    }: { norm?: boolean; gated?: boolean; floatOut?: boolean },
  ): KernelUnit[] {
    const needed = stagings(inFeatures).map((staged) => ({ outFeatures, inFeatures, norm, gated, staged }));
    return needed.flatMap((each) => {
      const plan = planSmall(each, this.dtype, this.options);
      return plan === undefined
        ? []
        : [this.#kernels.unit({ ...smallDefines(each, plan), OUT_FLOAT: floatOut ? 1 : 0 })];
    });
  }

  /** Enqueues `Backend.linear`, whose checks have passed, if it is one that the kernel can take; else false. */
  launch(stream: number, out: Tensor, x: Tensor, weight: DenseWeight, fusion: LinearFusion): boolean {
    const tokens = x.dim(0);
    if (tokens > MAX_SMALL_TOKENS) return false;
    const { norm, bias, activation, addTo } = fusion;
    const [outFeatures, inFeatures] = weight.shape;
    if (x.address % VECTOR_BYTES !== 0 || weight.data.address % VECTOR_BYTES !== 0) return false;
    if (norm !== undefined && norm.weight.address % VECTOR_BYTES !== 0) return false;
    const gated = activation?.gated ?? false;
    const shape = { outFeatures, inFeatures, gated, norm: norm !== undefined };
    const planned = this.#find({ ...shape, staged: isStaged(inFeatures, tokens) }, out.dtype === "float32");
    if (planned === undefined) return false;
    const { plan, kernel } = planned;
    kernel.launch(stream, plan.blocks, 1, 1, SMALL_THREADS, plan.sharedBytes, {
      ...{ out, x, weight: weight.data, gamma: norm?.weight ?? null, bias: bias ?? null },
      residual: addTo ?? null,
      ...{ tokens, outputs: gated ? outFeatures / 2 : outFeatures, tiles: plan.tiles },
      activation: activation === undefined ? -1 : ACTIVATION_CODES[activation.kind],
      // One token leaves the memory system idle enough for the next kernel's weights.
      trigger_early: plan.shares && tokens === 1 ? 1 : 0,
      eps: norm?.eps ?? 0,
    });
    return true;
  }

  #find(shape: SmallShape, floatOut: boolean) {
    const { outFeatures, inFeatures, norm, gated, staged } = shape;
    const flags = (norm ? 1 : 0) + (gated ? 2 : 0) + (floatOut ? 4 : 0) + (staged ? 8 : 0);
    const key = (outFeatures * 2 ** 20 + inFeatures) * 16 + flags;
    if (this.#planned.has(key)) return this.#planned.get(key);
    const plan = planSmall(shape, this.dtype, this.options);
    const defines = plan && { ...smallDefines(shape, plan), OUT_FLOAT: floatOut ? 1 : 0 };
    const planned = plan && { plan, kernel: this.#kernels.get(key, defines) };
    this.#planned.set(key, planned);
    return planned;
  }
}

/** Undefined for shapes that the kernel cannot take. */
export function planSmall(
  { outFeatures, inFeatures, gated, staged }: SmallShape,
  dtype: FloatDType,
  { smCount, sharedBytesPerBlock, sharedBytesPerSm }: SmallLinearOptions,
): SmallPlan | undefined {
  const chunk = CHUNKS.find((columns) => inFeatures % columns === 0) ?? CHUNKS[0];
  const tileRows = smallTileRows(outFeatures, gated, smCount);
  if (inFeatures % LINEAR_STEP !== 0 || outFeatures % tileRows !== 0) return undefined;
  const tiles = outFeatures / tileRows;
  const rounds = Math.ceil(tiles / smCount);
  const stageBytes = tileRows * (chunk * dtypeSize(dtype) + LINEAR_ROW_PADDING);
  const sums = 2 * LINEAR_WARPS * MAX_SMALL_TOKENS * (tileRows + LINEAR_SUM_PADDING) * 4;
  const squares = LINEAR_WARPS * MAX_SMALL_TOKENS * 4;
  const stagedBytes = staged ? STAGED_TOKENS * inFeatures * dtypeSize(dtype) : 0;
  const bytesFor = (stages: number) =>
    stages * (stageBytes + 16) + stagedBytes + sums + squares + SLACK_BYTES;
  const wanted = rounds * Math.ceil(inFeatures / chunk);
  const shares = bytesFor(wanted) <= Math.min(sharedBytesPerBlock, sharedBytesPerSm / 2 - RESERVED_BYTES);
  const most = Math.floor((sharedBytesPerBlock - bytesFor(0)) / (stageBytes + 16));
  const stages = shares ? wanted : Math.min(wanted, most);
  if (stages < 2) return undefined;
  const blocks = Math.ceil(tiles / rounds);
  return { tileRows, tiles, chunk, stages, blocks, sharedBytes: bytesFor(stages), shares };
}

/** Weight rows of a tile: half of them where whole tiles would leave multiprocessors idle. */
export function smallTileRows(outFeatures: number, gated: boolean, smCount: number): 16 | 8 {
  return gated || outFeatures / 16 >= smCount ? 16 : 8;
}

/** True if x of so many tokens is kept in shared memory. */
export function isStaged(inFeatures: number, tokens: number): boolean {
  return !keepsX(inFeatures) && tokens <= STAGED_TOKENS;
}

/** The values of `SmallShape.staged` that products by so many inputs have. */
export function stagings(inFeatures: number): readonly boolean[] {
  return keepsX(inFeatures) ? [false] : [false, true];
}

function keepsX(inFeatures: number): boolean {
  return inFeatures / (LINEAR_STEP * LINEAR_WARPS) <= MAX_KEPT_STEPS;
}

/** Macros of small_product.cuh. */
export function smallDefines({ inFeatures, norm, gated, staged }: SmallShape, plan: SmallPlan): Macros {
  return {
    ...{ IN_FEATURES: inFeatures, TILE_ROWS: plan.tileRows, CHUNK: plan.chunk, STAGES: plan.stages },
    ...{ NORM: norm ? 1 : 0, GATED: gated ? 1 : 0, STAGED_TOKENS: staged ? STAGED_TOKENS : 0 },
    ...{ LINEAR_SHARED_BYTES: plan.sharedBytes, MIN_CTAS: plan.shares ? 2 : 1 },
  };
}
