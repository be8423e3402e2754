import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import { type Kernel, STATIC_SHARED_BYTES } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { contextArguments, scoreArguments } from "./attention-arguments.ts";
import { FORM_KEYS, formKey, projectionDefines } from "./attention-form.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { DECODE_CONSTANTS, DECODE_TILE, decodeDefines, decodeWarps, slicesOf } from "./decode-tiles.ts";
import { headPart, headPartDefines } from "./head-part.ts";
import { type HeadShape, headKey, MAX_HEAD_DIM } from "./head-shape.ts";
import { type ArgumentsOf, KernelVariants, WARP } from "./kernel-variants.ts";
import { MergeAttention } from "./merge-attention.ts";

/** Decode blocks to aim for, per multiprocessor: several waves, so that rows of unequal length even out. */
const DECODE_BLOCKS_PER_SM = 16;
/**
 * Splits of a row at most: beyond them the merge of their results costs more than another split gains, but for what keeps
 * multiprocessors busy, so many blocks for each.
 */
const MAX_SPLITS = 32;
const BUSY_BLOCKS_PER_SM = 3;
/** The same of wide heads, whose splits leave as much as 16 to 32 of their tokens have. */
const WIDE_BLOCKS_PER_SM = 8;
const WIDE_BUSY_BLOCKS_PER_SM = 2;
/** The cut of rows that must not depend on each other: splits at most, and the least that one gets, in tokens. */
const INVARIANT_SPLITS = 16;
const INVARIANT_SPLIT_TOKENS = 256;

const ATTENTION_DECODE = {
  file: "attention_decode.cu",
  constants: { ...DECODE_CONSTANTS, STATIC_SHARED_BYTES },
  entry: "attention_decode",
  pointers: [
    ...(["out", "qkv", "keys", "values", "cos_sin", "query_norm", "key_norm", "slot_mapping"] as const),
    ...(["block_tables", "row_slots", "context_lens", "partials", "partial_stats", "counters"] as const),
    ...(["query_scales", "sinks"] as const),
  ],
  scalars: [
    "max_blocks",
    "scale_log2",
    "window",
    "eps",
    "min_split_tiles",
    "key_scale",
    "value_scale",
    "cap_log2",
  ],
} as const;

/** Splits of each row of a decode batch: gridDim.z, and the least tiles that a split gets. */
export interface DecodeSplits {
  readonly splits: number;
  readonly minTiles: number;
}

/**
 * The cut of a decode batch, from what a captured launch may depend on. Few rows are cut finely, down to a tile for
 * each warp, as latency is all, but rows of less than `UNCUT_TOKENS` not at all; many rows hardly or not at all. With `batchInvariant` it does not depend on the rows.
 */
export function decodeSplits(
  rows: number,
  numKvHeads: number,
  smCount: number,
  { batchInvariant = false, isWide = false } = {},
): DecodeSplits {
  if (batchInvariant) return { splits: INVARIANT_SPLITS, minTiles: INVARIANT_SPLIT_TOKENS / DECODE_TILE };
  const items = rows * numKvHeads;
  const [blocksPerSm, busyPerSm] = isWide
    ? [WIDE_BLOCKS_PER_SM, WIDE_BUSY_BLOCKS_PER_SM]
    : [DECODE_BLOCKS_PER_SM, BUSY_BLOCKS_PER_SM];
  const wanted = Math.floor((smCount * blocksPerSm) / items);
  const most = Math.max(MAX_SPLITS, Math.floor((smCount * busyPerSm) / items));
  const minTokens = items * 4 <= smCount ? 64 : items * 2 <= smCount ? 128 : 256;
  return { splits: Math.min(Math.max(wanted, 1), most), minTiles: minTokens / DECODE_TILE };
}

/** The kernel of one head shape and its scratch memory. */
interface Variant {
  readonly kernel: Kernel<ArgumentsOf<typeof ATTENTION_DECODE>>;
  readonly threads: number;
  /** Of the splits, float32: unnormalised outputs; maxima and sums. */
  readonly partials: Scratch;
  readonly stats: Scratch;
  /** uint32: splits of a row's head that have arrived, always 0 between launches. */
  readonly counters: Scratch;
}

/** All of `Backend.attend` for rows with one query token: `attention_decode.cu`, and for wide heads `attention_merge.cu`. */
export class DecodeAttention {
  readonly #kernels: KernelVariants<typeof ATTENTION_DECODE>;
  readonly #merge: MergeAttention;
  readonly #variants = new Map<number, Variant>();

  constructor(
    library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    this.#kernels = new KernelVariants(library, ATTENTION_DECODE, options.dtype, options);
    this.#merge = new MergeAttention(library, options);
  }

  units(shape: HeadShape, form: AttentionForm): KernelUnit[] {
    const merge = slicesOf(shape) > 1 ? [this.#merge.unit(shape, form)] : [];
    return [this.#kernels.unit(this.#defines(shape, form)), ...merge];
  }

  /**
   * Rows [0, batch.decodeRows), whose tokens are the first of `qkv`. Scratch is allocated at a head shape's first use, and
   * with `batchInvariant` when there are more rows than ever before.
   */
  launch(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
    shape: HeadShape,
  ): void {
    const { decodeRows } = batch;
    const { numKvHeads, headNorm, cosSin, queryScales } = spec;
    const { keys, values, keyScale = 1, valueScale = 1 } = cache;
    const { smCount, batchInvariant = false } = this.options;
    const isWide = slicesOf(shape) > 1;
    const { splits, minTiles } = decodeSplits(decodeRows, numKvHeads, smCount, { batchInvariant, isWide });
    const form = attentionFormOf(spec);
    const { kernel, threads, ...scratch } = this.#variant(shape, form);
    // What decodeSplits lets happen at most: rows in one split need no scratch.
    const items = batchInvariant
      ? decodeRows * numKvHeads * INVARIANT_SPLITS
      : smCount * DECODE_BLOCKS_PER_SM;
    const partials = scratch.partials.atLeast(items * shape.group * shape.headDim * 4);
    const stats = scratch.stats.atLeast(items * shape.group * 8);
    kernel.launch(stream, numKvHeads, decodeRows, splits, threads, 0, {
      ...{ out, qkv, keys, values, cos_sin: cosSin ?? null, slot_mapping: batch.slotMapping },
      query_norm: headNorm?.query ?? null,
      key_norm: headNorm?.key ?? null,
      eps: headNorm?.eps ?? 0,
      query_scales: queryScales ?? null,
      ...{ ...contextArguments(batch, spec), ...scoreArguments(spec, cache) },
      ...{ partials, partial_stats: stats, counters: scratch.counters.atLeast(items * 4) },
      min_split_tiles: minTiles,
      ...{ key_scale: keyScale, value_scale: valueScale },
    });
    if (isWide && splits > 1)
      this.#merge.launch(stream, out, { partials, stats, splits, minTiles }, cache, batch, spec, shape);
  }

  #variant(shape: HeadShape, form: AttentionForm): Variant {
    const key = (headKey(shape) * (MAX_HEAD_DIM + 1) + form.rotaryDim) * FORM_KEYS + formKey(form);
    let variant = this.#variants.get(key);
    if (variant === undefined) {
      const zeros = () => new Scratch(this.options.allocateZeroed);
      const kernel = this.#kernels.get(key, this.#defines(shape, form));
      const threads = decodeWarps(shape) * WARP;
      kernel.fn.preferCache(threads);
      variant = {
        ...{ kernel, threads },
        ...{ partials: zeros(), stats: zeros(), counters: zeros() },
      };
      this.#variants.set(key, variant);
    }
    return variant;
  }

  #defines(shape: HeadShape, form: AttentionForm): Macros {
    const { rotaryDim, readsOnly } = form;
    return {
      ...{ ...decodeDefines(shape, form), ...projectionDefines(form) },
      ...headPartDefines(rotaryDim, headPart(this.options.dtype, shape.headDim, rotaryDim)),
      ...(readsOnly && { READS_ONLY: 1 }),
    };
  }
}
