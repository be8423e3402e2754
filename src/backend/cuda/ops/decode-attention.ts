import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import { type Kernel, STATIC_SHARED_BYTES } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import { contextArguments, scoreArguments } from "./attention-arguments.ts";
import { FORM_KEYS, formKey, queryDefines, scoreDefines } from "./attention-form.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { headPart, headPartDefines } from "./head-part.ts";
import { type HeadShape, headDefines, headKey, MAX_GROUP_SIZE, MAX_HEAD_DIM } from "./head-shape.ts";
import { type ArgumentsOf, KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** Tokens of a decode warp's step. */
export const DECODE_TILE = 16;
/** The same of tokens in eight bits: as many bytes, where there are registers for the scores besides. */
const FLOAT8_TILE = 32;
const MAX_FLOAT8_TILE_DIM = 128;
/** Decode blocks to aim for, per multiprocessor: several waves, so that rows of unequal length even out. */
const DECODE_BLOCKS_PER_SM = 16;
/**
 * Splits of a row at most: beyond them the merge of their results costs more than another split gains, but for what keeps
 * multiprocessors busy, so many blocks for each.
 */
const MAX_SPLITS = 32;
const BUSY_BLOCKS_PER_SM = 3;
/** Tokens that are not cut: merging the results of splits takes longer than reading so many. */
const UNCUT_TOKENS = 256;
/** The cut of rows that must not depend on each other: splits at most, and the least that one gets, in tokens. */
const INVARIANT_SPLITS = 16;
const INVARIANT_SPLIT_TOKENS = 256;

const ATTENTION_DECODE = {
  file: "attention_decode.cu",
  constants: { STATIC_SHARED_BYTES, MAX_HEAD_DIM, MAX_GROUP_SIZE, UNCUT_TOKENS },
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
  batchInvariant = false,
): DecodeSplits {
  if (batchInvariant) return { splits: INVARIANT_SPLITS, minTiles: INVARIANT_SPLIT_TOKENS / DECODE_TILE };
  const items = rows * numKvHeads;
  const wanted = Math.floor((smCount * DECODE_BLOCKS_PER_SM) / items);
  const most = Math.max(MAX_SPLITS, Math.floor((smCount * BUSY_BLOCKS_PER_SM) / items));
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

/** All of `Backend.attend` for rows with one query token: `attention_decode.cu`. */
export class DecodeAttention {
  readonly #kernels: KernelVariants<typeof ATTENTION_DECODE>;
  readonly #variants = new Map<number, Variant>();

  constructor(
    library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    this.#kernels = new KernelVariants(library, ATTENTION_DECODE, options.dtype, options);
  }

  unit(shape: HeadShape, form: AttentionForm): KernelUnit {
    return this.#kernels.unit(this.#defines(shape, form));
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
    const { smCount, batchInvariant } = this.options;
    const { splits, minTiles } = decodeSplits(decodeRows, numKvHeads, smCount, batchInvariant);
    const { kernel, threads, partials, stats, counters } = this.#variant(shape, attentionFormOf(spec));
    // What decodeSplits lets happen at most: rows in one split need no scratch.
    const items = batchInvariant
      ? decodeRows * numKvHeads * INVARIANT_SPLITS
      : smCount * DECODE_BLOCKS_PER_SM;
    kernel.launch(stream, numKvHeads, decodeRows, splits, threads, 0, {
      ...{ out, qkv, keys, values, cos_sin: cosSin ?? null, slot_mapping: batch.slotMapping },
      query_norm: headNorm?.query ?? null,
      key_norm: headNorm?.key ?? null,
      eps: headNorm?.eps ?? 0,
      query_scales: queryScales ?? null,
      ...{ ...contextArguments(batch, spec), ...scoreArguments(spec, cache) },
      partials: partials.atLeast(items * shape.group * shape.headDim * 4),
      partial_stats: stats.atLeast(items * shape.group * 8),
      counters: counters.atLeast(items * 4),
      min_split_tiles: minTiles,
      ...{ key_scale: keyScale, value_scale: valueScale },
    });
  }

  #variant(shape: HeadShape, form: AttentionForm): Variant {
    const key = (headKey(shape) * (MAX_HEAD_DIM + 1) + form.rotaryDim) * FORM_KEYS + formKey(form);
    let variant = this.#variants.get(key);
    if (variant === undefined) {
      const zeros = () => new Scratch(this.options.allocateZeroed);
      const kernel = this.#kernels.get(key, this.#defines(shape, form));
      const threads = this.#warps(shape) * WARP;
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
    const { rotaryDim } = form;
    return {
      ...headDefines(shape),
      ...headPartDefines(rotaryDim, headPart(this.options.dtype, shape.headDim, rotaryDim)),
      ...{ ...scoreDefines(form), ...queryDefines(form) },
      DECODE_WARPS: this.#warps(shape),
      DECODE_TILE: shape.float8 && shape.headDim <= MAX_FLOAT8_TILE_DIM ? FLOAT8_TILE : DECODE_TILE,
    };
  }

  /** Warps of a decode block: as many as merge their results in static shared memory, beside the group's projections. */
  #warps({ headDim, group, float8 }: HeadShape): number {
    const projected = (group + 2) * (headDim * 2 + VECTOR_BYTES) + (float8 ? 2 * headDim : 0);
    return 4 * group * (headDim + 2) * 4 + projected + VECTOR_BYTES < STATIC_SHARED_BYTES ? 4 : 2;
  }
}
