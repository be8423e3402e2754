import type { FloatDType } from "../../../base/dtype.ts";
import { ConfigError, UnsupportedModelError } from "../../../base/errors.ts";
import type { AttentionSpec, BatchTensors, LayerCache } from "../../backend.ts";
import { checkAttention } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { Kernel } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";

const WARP = 32;
/** Tokens of a decode warp's step: `TILE` of attention_decode.cu. */
const DECODE_TILE = 16;
const PREFILL_WARPS = 4;
/** Keys of a prefill step: `KEYS` of attention_prefill.cu. */
const PREFILL_KEYS = 64;
const MAX_HEAD_DIM = 256;
const MAX_GROUP = 16;
/** Static shared memory that a kernel may declare. */
const STATIC_SHARED_BYTES = 48 * 1024;
/** Decode blocks to aim for, per multiprocessor: several waves, so that rows of unequal length even out. */
const DECODE_BLOCKS_PER_SM = 16;
/** Beyond this the merge of the splits' results costs more than another split gains. */
const MAX_SPLITS = 32;

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
  readonly decode: Kernel;
  readonly decodeThreads: number;
  readonly prefill: Kernel;
  readonly prefillRows: number;
  readonly prefillShared: number;
  /** float32: unnormalised outputs of the splits; their maxima and sums; uint32 arrival counters, always 0 between launches. */
  readonly partials: DeviceBuffer;
  readonly stats: DeviceBuffer;
  readonly counters: DeviceBuffer;
}

type Heads = Pick<AttentionSpec, "numHeads" | "numKvHeads" | "headDim">;

interface HeadShape {
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
  readonly #variants = new Map<string, Variant>();

  /** @throws ConfigError when `dtype` is not a 16-bit type. */
  constructor(
    private readonly library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    if (options.dtype === "float32")
      throw new ConfigError("dtype", "attention on cuda computes in bfloat16 or float16, not float32");
  }

  /** @throws UnsupportedModelError as `attention` does. */
  units(heads: Heads, blockSize: number): KernelUnit[] {
    const shape = headShape(heads, blockSize);
    return [
      { file: "attention_decode.cu", defines: this.#decodeDefines(shape) },
      { file: "attention_prefill.cu", defines: this.#prefillDefines(shape) },
    ];
  }

  /** See `Backend.attention`. @throws UnsupportedModelError for head shapes that the kernels cannot take. */
  attention(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
  ): void {
    const { maxBlocks } = checkAttention(this.options.dtype, out, qkv, cache, batch, spec);
    const { numKvHeads, window } = spec;
    const { decodeRows, numRows } = batch;
    const shape = headShape(spec, batch.blockSize);
    const variant = this.#variant(shape);
    const scaleLog2 = spec.scale * Math.LOG2E;
    if (decodeRows > 0) {
      const { splits, minTiles } = decodeSplits(decodeRows, numKvHeads, this.options.smCount);
      variant.decode.launch(
        stream,
        numKvHeads,
        decodeRows,
        splits,
        variant.decodeThreads,
        0,
        out.address,
        qkv.address,
        cache.keys.address,
        cache.values.address,
        batch.blockTables.address,
        batch.rowSlots.address,
        batch.contextLens.address,
        variant.partials.address,
        variant.stats.address,
        variant.counters.address,
        maxBlocks,
        scaleLog2,
        window,
        minTiles,
      );
    }
    if (decodeRows < numRows) {
      variant.prefill.launch(
        stream,
        Math.ceil((batch.maxQueryLen * shape.group) / variant.prefillRows),
        numKvHeads,
        numRows - decodeRows,
        PREFILL_WARPS * WARP,
        variant.prefillShared,
        out.address,
        qkv.address,
        cache.keys.address,
        cache.values.address,
        batch.blockTables.address,
        batch.rowSlots.address,
        batch.cuSeqlensQ.address,
        batch.contextLens.address,
        decodeRows,
        maxBlocks,
        scaleLog2,
        window,
      );
    }
  }

  #variant(shape: HeadShape): Variant {
    const { headDim, group, blockSize } = shape;
    const key = `${headDim}/${group}/${blockSize}`;
    let variant = this.#variants.get(key);
    if (variant === undefined) {
      const { smCount, allocateZeroed, dependentLaunch = false } = this.options;
      // What decodeSplits lets happen at most: rows in one split need no scratch.
      const items = smCount * DECODE_BLOCKS_PER_SM;
      const rows = prefillRows(headDim);
      variant = {
        decode: this.library.kernel(
          "attention_decode.cu",
          "attention_decode",
          "ppppppppppifiu",
          this.#decodeDefines(shape),
          { dependentLaunch },
        ),
        decodeThreads: decodeWarps(shape) * WARP,
        prefill: this.library.kernel(
          "attention_prefill.cu",
          "attention_prefill",
          "ppppppppiifi",
          this.#prefillDefines(shape),
          { dependentLaunch },
        ),
        prefillRows: rows,
        prefillShared: (rows + 2 * PREFILL_KEYS) * (headDim + 8) * 2,
        partials: allocateZeroed(items * group * headDim * 4),
        stats: allocateZeroed(items * group * 8),
        counters: allocateZeroed(items * 4),
      };
      this.#variants.set(key, variant);
    }
    return variant;
  }

  #decodeDefines(shape: HeadShape): Record<string, number> {
    return { ...this.#defines(shape), DECODE_WARPS: decodeWarps(shape) };
  }

  #prefillDefines(shape: HeadShape): Record<string, number> {
    return { ...this.#defines(shape), PREFILL_ROWS: prefillRows(shape.headDim) };
  }

  #defines({ headDim, group, blockSize }: HeadShape): Record<string, number> {
    const dtype = this.options.dtype === "bfloat16" ? "DTYPE_BF16" : "DTYPE_F16";
    return { [dtype]: 1, HEAD_DIM: headDim, GROUP_SIZE: group, BLOCK_SIZE: blockSize };
  }
}

function headShape({ numHeads, numKvHeads, headDim }: Heads, blockSize: number): HeadShape {
  if (headDim % 32 !== 0 || headDim > MAX_HEAD_DIM)
    throw unsupported(`head dimension ${headDim}; supported are multiples of 32 up to ${MAX_HEAD_DIM}`);
  const group = numHeads / numKvHeads;
  if (group > MAX_GROUP)
    throw unsupported(
      `${numHeads} query heads over ${numKvHeads}; supported are up to ${MAX_GROUP} for each`,
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
