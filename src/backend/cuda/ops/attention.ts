import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { ConfigError, UnsupportedModelError } from "../../../base/errors.ts";
import type { AttentionSpec, BatchTensors, LayerCache } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import { type Kernel, STATIC_SHARED_BYTES } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { type ArgumentsOf, KernelVariants, WARP } from "./kernel-variants.ts";

/** Tokens of a decode warp's step. */
const DECODE_TILE = 16;
const PREFILL_WARPS = 4;
/** Keys of a prefill step. */
const PREFILL_KEYS = 64;
/** Elements between rows in a prefill block's shared memory: they spread the rows over its banks. */
const PREFILL_PADDING = 8;
const MAX_HEAD_DIM = 256;
const MAX_GROUP_SIZE = 16;
/** Decode blocks to aim for, per multiprocessor: several waves, so that rows of unequal length even out. */
const DECODE_BLOCKS_PER_SM = 16;
/** Beyond this the merge of the splits' results costs more than another split gains. */
const MAX_SPLITS = 32;

const ATTENTION_DECODE = {
  file: "attention_decode.cu",
  constants: { DECODE_TILE, STATIC_SHARED_BYTES, MAX_HEAD_DIM, MAX_GROUP_SIZE },
  entry: "attention_decode",
  pointers: [
    ...(["out", "qkv", "keys", "values", "block_tables", "row_slots", "context_lens"] as const),
    ...(["partials", "partial_stats", "counters"] as const),
  ],
  scalars: ["max_blocks", "scale_log2", "window", "min_split_tiles"],
} as const;
const ATTENTION_PREFILL = {
  file: "attention_prefill.cu",
  constants: { PREFILL_WARPS, PREFILL_KEYS, PREFILL_PADDING, MAX_HEAD_DIM, MAX_GROUP_SIZE },
  entry: "attention_prefill",
  pointers: [
    ...(["out", "qkv", "keys", "values", "block_tables", "row_slots", "cu_seqlens_q"] as const),
    "context_lens",
  ],
  scalars: ["first_row", "max_blocks", "scale_log2", "window"],
} as const;

export interface AttentionOptions {
  /** Multiprocessors of the GPU. */
  readonly smCount: number;
  readonly dtype: FloatDType;
  /** Memory of zeros, freed by whoever provides it. Called at a head shape's first use, never in a captured launch. */
  readonly allocateZeroed: (byteLength: number) => DeviceBuffer;
  /** See `KernelOptions.dependentLaunch`. Default false. */
  readonly dependentLaunch?: boolean;
}

/** How the rows of a decode batch are cut: gridDim.z, and the least that a split gets. */
export interface DecodeSplits {
  readonly splits: number;
  readonly minTiles: number;
}

/**
 * The cut of a decode batch, from what a captured launch may depend on. Few rows are cut finely, down to a tile for
 * each warp, as latency is all; many rows hardly or not at all.
 */
export function decodeSplits(rows: number, numKvHeads: number, smCount: number): DecodeSplits {
  const items = rows * numKvHeads;
  const wanted = Math.floor((smCount * DECODE_BLOCKS_PER_SM) / items);
  const minTokens = items * 4 <= smCount ? 64 : items * 2 <= smCount ? 128 : 256;
  return { splits: Math.min(Math.max(wanted, 1), MAX_SPLITS), minTiles: minTokens / DECODE_TILE };
}

/** Kernels and scratch memory of one head shape. */
interface Variant {
  readonly decode: Kernel<ArgumentsOf<typeof ATTENTION_DECODE>>;
  readonly decodeThreads: number;
  readonly prefill: Kernel<ArgumentsOf<typeof ATTENTION_PREFILL>>;
  readonly prefillRows: number;
  readonly prefillShared: number;
  /** float32: unnormalised outputs of the splits; their maxima and sums; uint32 arrival counters, always 0 between launches. */
  readonly partials: DeviceBuffer;
  readonly stats: DeviceBuffer;
  readonly counters: DeviceBuffer;
}

type Heads = Pick<AttentionSpec, "numHeads" | "numKvHeads" | "headDim">;

/** What the kernels are specialised by. */
export interface HeadShape {
  readonly headDim: number;
  /** Query heads of a key/value head. */
  readonly group: number;
  readonly blockSize: number;
}

/**
 * Paged attention: `attention_decode.cu` for rows of one query token, `attention_prefill.cu` for the others. Launch
 * shapes and scratch addresses depend on row counts and `maxQueryLen` alone, so launches can be captured; scratch is
 * allocated at a head shape's first use, which must come before capture.
 */
export class AttentionOps {
  readonly #decode: KernelVariants<typeof ATTENTION_DECODE>;
  readonly #prefill: KernelVariants<typeof ATTENTION_PREFILL>;
  readonly #variants = new Map<number, Variant>();

  /** @throws ConfigError when `dtype` is not a 16-bit type. */
  constructor(
    library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    const { dtype } = options;
    if (dtype === "float32")
      throw new ConfigError("dtype", "attention on cuda computes in bfloat16 or float16, not float32");
    this.#decode = new KernelVariants(library, ATTENTION_DECODE, dtype, options);
    this.#prefill = new KernelVariants(library, ATTENTION_PREFILL, dtype, options);
  }

  /** @throws UnsupportedModelError as `headShape` does. */
  units(heads: Heads, blockSize: number): KernelUnit[] {
    const shape = headShape(heads, blockSize);
    return [this.#decode.unit(decodeDefines(shape)), this.#prefill.unit(prefillDefines(shape))];
  }

  /**
   * The last part of `Backend.attend`, whose checks have passed: queries in `qkv`, and all keys and values in the cache.
   * `shape` is that of `spec`.
   */
  attention(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
    shape: HeadShape,
  ): void {
    const maxBlocks = batch.blockTables.dim(1);
    const { numKvHeads, window } = spec;
    const { keys, values } = cache;
    const { decodeRows, numRows } = batch;
    const variant = this.#variant(shape);
    const scale_log2 = spec.scale * Math.LOG2E;
    if (decodeRows > 0) {
      const { splits, minTiles } = decodeSplits(decodeRows, numKvHeads, this.options.smCount);
      variant.decode.launch(stream, numKvHeads, decodeRows, splits, variant.decodeThreads, 0, {
        out,
        qkv,
        keys,
        values,
        block_tables: batch.blockTables,
        row_slots: batch.rowSlots,
        context_lens: batch.contextLens,
        partials: variant.partials,
        partial_stats: variant.stats,
        counters: variant.counters,
        max_blocks: maxBlocks,
        scale_log2,
        window,
        min_split_tiles: minTiles,
      });
    }
    if (decodeRows < numRows) {
      variant.prefill.launch(
        stream,
        Math.ceil((batch.maxQueryLen * shape.group) / variant.prefillRows),
        numKvHeads,
        numRows - decodeRows,
        PREFILL_WARPS * WARP,
        variant.prefillShared,
        {
          out,
          qkv,
          keys,
          values,
          block_tables: batch.blockTables,
          row_slots: batch.rowSlots,
          cu_seqlens_q: batch.cuSeqlensQ,
          context_lens: batch.contextLens,
          first_row: decodeRows,
          max_blocks: maxBlocks,
          scale_log2,
          window,
        },
      );
    }
  }

  #variant(shape: HeadShape): Variant {
    const { headDim, group, blockSize } = shape;
    const key = (blockSize * (MAX_GROUP_SIZE + 1) + group) * (MAX_HEAD_DIM + 1) + headDim;
    let variant = this.#variants.get(key);
    if (variant === undefined) {
      const { smCount, allocateZeroed } = this.options;
      // What decodeSplits lets happen at most: rows in one split need no scratch.
      const items = smCount * DECODE_BLOCKS_PER_SM;
      const rows = prefillRows(headDim);
      variant = {
        decode: this.#decode.get(key, decodeDefines(shape)),
        decodeThreads: decodeWarps(shape) * WARP,
        prefill: this.#prefill.get(key, prefillDefines(shape)),
        prefillRows: rows,
        prefillShared:
          (rows + 2 * PREFILL_KEYS) * (headDim + PREFILL_PADDING) * dtypeSize(this.options.dtype),
        partials: allocateZeroed(items * group * headDim * 4),
        stats: allocateZeroed(items * group * 8),
        counters: allocateZeroed(items * 4),
      };
      this.#variants.set(key, variant);
    }
    return variant;
  }
}

function decodeDefines(shape: HeadShape): Macros {
  return { ...headDefines(shape), DECODE_WARPS: decodeWarps(shape) };
}

function prefillDefines(shape: HeadShape): Macros {
  return { ...headDefines(shape), PREFILL_ROWS: prefillRows(shape.headDim) };
}

function headDefines({ headDim, group, blockSize }: HeadShape): Macros {
  return { HEAD_DIM: headDim, GROUP_SIZE: group, BLOCK_SIZE: blockSize };
}

/** @throws UnsupportedModelError for heads that the kernels cannot take. */
export function headShape({ numHeads, numKvHeads, headDim }: Heads, blockSize: number): HeadShape {
  if (headDim % 32 !== 0 || headDim > MAX_HEAD_DIM)
    throw unsupported(`head dimension ${headDim}; supported are multiples of 32 up to ${MAX_HEAD_DIM}`);
  const group = numHeads / numKvHeads;
  if (group > MAX_GROUP_SIZE)
    throw unsupported(
      `${numHeads} query heads over ${numKvHeads}; supported are up to ${MAX_GROUP_SIZE} for each`,
    );
  return { headDim, group, blockSize };
}

function unsupported(what: string): UnsupportedModelError {
  return new UnsupportedModelError("config.json", `attention on cuda does not take a ${what}`);
}

/** Warps of a decode block: as many as merge their results in static shared memory. */
function decodeWarps({ headDim, group }: HeadShape): number {
  return 4 * group * (headDim + 2) * 4 < STATIC_SHARED_BYTES ? 4 : 2;
}

/** Packed query rows of a prefill tile: as many as registers hold results for. */
function prefillRows(headDim: number): number {
  return headDim <= 128 ? 128 : 64;
}
