import type { AttentionSpec, BatchTensors, LayerCache } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import { type Kernel, STATIC_SHARED_BYTES } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { attentionArguments } from "./attention-arguments.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { type HeadShape, headDefines, headKey, MAX_GROUP_SIZE, MAX_HEAD_DIM } from "./head-shape.ts";
import { type ArgumentsOf, KernelVariants, WARP } from "./kernel-variants.ts";

/** Tokens of a decode warp's step. */
const DECODE_TILE = 16;
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

/** The kernel of one head shape and its scratch memory. */
interface Variant {
  readonly kernel: Kernel<ArgumentsOf<typeof ATTENTION_DECODE>>;
  readonly threads: number;
  /** float32: unnormalised outputs of the splits; their maxima and sums; uint32 arrival counters, always 0 between launches. */
  readonly partials: DeviceBuffer;
  readonly stats: DeviceBuffer;
  readonly counters: DeviceBuffer;
}

/** Attention of rows with one query token: `attention_decode.cu`. */
export class DecodeAttention {
  readonly #kernels: KernelVariants<typeof ATTENTION_DECODE>;
  readonly #variants = new Map<number, Variant>();

  constructor(
    library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    this.#kernels = new KernelVariants(library, ATTENTION_DECODE, options.dtype, options);
  }

  unit(shape: HeadShape): KernelUnit {
    return this.#kernels.unit(decodeDefines(shape));
  }

  /** Rows [0, batch.decodeRows). Scratch is allocated at a head shape's first use. */
  launch(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    { keys, values }: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
    shape: HeadShape,
  ): void {
    const { decodeRows } = batch;
    const { kernel, threads, partials, stats, counters } = this.#variant(shape);
    const { splits, minTiles } = decodeSplits(decodeRows, spec.numKvHeads, this.options.smCount);
    kernel.launch(stream, spec.numKvHeads, decodeRows, splits, threads, 0, {
      ...{ out, qkv, keys, values },
      ...attentionArguments(batch, spec),
      ...{ partials, partial_stats: stats, counters },
      min_split_tiles: minTiles,
    });
  }

  #variant(shape: HeadShape): Variant {
    const key = headKey(shape);
    let variant = this.#variants.get(key);
    if (variant === undefined) {
      const { smCount, allocateZeroed } = this.options;
      const { group, headDim } = shape;
      // What decodeSplits lets happen at most: rows in one split need no scratch.
      const items = smCount * DECODE_BLOCKS_PER_SM;
      variant = {
        kernel: this.#kernels.get(key, decodeDefines(shape)),
        threads: decodeWarps(shape) * WARP,
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

/** Warps of a decode block: as many as merge their results in static shared memory. */
function decodeWarps({ headDim, group }: HeadShape): number {
  return 4 * group * (headDim + 2) * 4 < STATIC_SHARED_BYTES ? 4 : 2;
}
