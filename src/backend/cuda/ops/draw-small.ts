import type { FloatDType } from "../../../base/dtype.ts";
import type { LmHead, SampleRows, SlotTensors } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { DenseWeight } from "../../weight.ts";
import type { Kernel } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES } from "./kernel-variants.ts";
import type { SamplingOps } from "./sampling.ts";
import { SLOT_CONSTANTS } from "./slot-layout.ts";
import {
  isStaged,
  MAX_SMALL_TOKENS,
  planSmall,
  SMALL_CONSTANTS,
  SMALL_THREADS,
  type SmallLinearOptions,
  type SmallPlan,
  type SmallShape,
  smallDefines,
  stagings,
} from "./small-linear.ts";

const DRAW_SMALL = {
  file: "draw_small.cu",
  constants: { ...SMALL_CONSTANTS, ...SLOT_CONSTANTS },
  entry: "draw_small",
  pointers: ["keys", "x", "weight", "gamma", "row_slots", "positions", "params"],
  scalars: ["tokens", "vocab", "first_token", "tiles", "trigger_early", "eps", "cap"],
} as const;

/** Bytes of a key: a score and its token. */
const KEY_BYTES = 8;

/** The plan of a head's shape, with its kernel. */
interface PlannedHead {
  readonly plan: SmallPlan;
  readonly kernel: Kernel<ArgumentsOf<typeof DRAW_SMALL>>;
}

/** A head that is stored as floats. */
export type DenseHead = LmHead & { readonly weight: DenseWeight };

/** `Backend.drawTokens` for at most `MAX_SMALL_TOKENS` rows: the draw in the epilogue of the LM head, `draw_small.cu`. */
export class DrawSmall {
  readonly #kernels: KernelVariants<typeof DRAW_SMALL>;
  readonly #planned = new Map<number, PlannedHead | undefined>();
  readonly #keys: Scratch;

  /** @param allocate Device memory that the backend frees. */
  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly sampling: SamplingOps,
    allocate: (byteLength: number) => DeviceBuffer,
    private readonly options: SmallLinearOptions,
  ) {
    this.#kernels = new KernelVariants(library, DRAW_SMALL, dtype, options);
    this.#keys = new Scratch(allocate);
  }

  /** Units for a normed head [vocabSize, hiddenSize]; none if the kernel cannot take it. @param isCapped see `LmHead.softCap` */
  units(vocabSize: number, hiddenSize: number, isCapped: boolean): KernelUnit[] {
    return stagings(hiddenSize).flatMap((staged) => {
      const shape = headShape(vocabSize, hiddenSize, true, staged);
      const plan = planSmall(shape, this.dtype, this.options);
      return plan === undefined ? [] : [this.#kernels.unit(defines(shape, plan, isCapped))];
    });
  }

  /** Enqueues `Backend.drawTokens`, whose checks have passed, if the kernel can take it; else false. */
  launch(
    stream: number,
    out: Tensor,
    hidden: Tensor,
    { weight, norm, firstToken = 0, softCap }: DenseHead,
    samples: SampleRows,
    slots: SlotTensors,
  ): boolean {
    const [tokens, inFeatures] = [hidden.dim(0), hidden.dim(1)];
    // Room for any head and any rows, even if these are too many: steps of few rows are captured after one of many.
    const keys = this.#keys.atLeast(MAX_SMALL_TOKENS * this.options.smCount * KEY_BYTES);
    if (tokens > MAX_SMALL_TOKENS) return false;
    if (hidden.address % VECTOR_BYTES !== 0 || weight.data.address % VECTOR_BYTES !== 0) return false;
    if (norm !== undefined && norm.weight.address % VECTOR_BYTES !== 0) return false;
    const [vocab] = weight.shape;
    const planned = this.#find(
      headShape(vocab, inFeatures, norm !== undefined, isStaged(inFeatures, tokens)),
      softCap !== undefined,
    );
    if (planned === undefined) return false;
    const { plan, kernel } = planned;
    kernel.launch(stream, plan.blocks, 1, 1, SMALL_THREADS, plan.sharedBytes, {
      ...{ keys, x: hidden, weight: weight.data, gamma: norm?.weight ?? null },
      ...{ row_slots: samples.slots, positions: samples.positions, params: slots.params },
      ...{ tokens, vocab, first_token: firstToken, tiles: plan.tiles, trigger_early: 0, eps: norm?.eps ?? 0 },
      cap: softCap ?? 0,
    });
    this.sampling.drawRows(stream, out, keys, plan.blocks, samples, slots);
    return true;
  }

  #find(shape: SmallShape, isCapped: boolean): PlannedHead | undefined {
    const { outFeatures, inFeatures, norm, staged } = shape;
    const bits = (norm ? 1 : 0) + (staged ? 2 : 0) + (isCapped ? 4 : 0);
    const key = (outFeatures * 2 ** 20 + inFeatures) * 8 + bits;
    if (this.#planned.has(key)) return this.#planned.get(key);
    const plan = planSmall(shape, this.dtype, this.options);
    const planned = plan && { plan, kernel: this.#kernels.get(key, defines(shape, plan, isCapped)) };
    this.#planned.set(key, planned);
    return planned;
  }
}

function headShape(outFeatures: number, inFeatures: number, norm: boolean, staged: boolean): SmallShape {
  return { outFeatures, inFeatures, norm, gated: false, staged };
}

function defines(shape: SmallShape, plan: SmallPlan, isCapped: boolean): Macros {
  return { ...smallDefines(shape, plan), SOFT_CAP: Number(isCapped) };
}
