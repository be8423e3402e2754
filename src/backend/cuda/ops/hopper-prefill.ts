import { dtypeSize } from "../../../base/dtype.ts";
import { TENSOR_MAP_BYTES } from "../../../cuda/tensor-map.ts";
import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { contextArguments, scoreArguments } from "./attention-arguments.ts";
import { FORM_KEYS, formKey, scoreDefines } from "./attention-form.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { type HeadShape, headDefines, headKey, MAX_GROUP_SIZE, MAX_HEAD_DIM } from "./head-shape.ts";
import { KernelVariants, WARP } from "./kernel-variants.ts";

/** Warpgroups that multiply; one more fetches. */
const PREFILL_CONSUMERS = 2;
/** Tiles of keys, and of values, that are in shared memory at once. */
const PREFILL_STAGES = 2;
/** Tiles of keys or values in eight bits that are in shared memory, on their way to the others. */
const PREFILL_CODE_STAGES = 2;
/** Room for what the warps of a block tell each other. */
const PREFILL_CONTROL_BYTES = 256;
/** Dimensions for whose results a warpgroup has registers: of wider heads a cluster's blocks have a part each. */
const MAX_BLOCK_DIM = 256;
/** Bytes of a score that blocks of a cluster exchange. */
const SCORE_BYTES = 4;
/** Packed query rows of a tile: 64 for each warpgroup that multiplies. */
const ROWS = 64 * PREFILL_CONSUMERS;
/** Elements of a swizzled row, and rows of the group that the swizzle spans. */
const SWIZZLE_WIDTH = 64;
const SWIZZLE_ROWS = 8;

const ATTENTION_PREFILL_HOPPER = {
  file: "attention_prefill_hopper.cu",
  constants: { PREFILL_CONSUMERS, PREFILL_STAGES, PREFILL_CONTROL_BYTES, MAX_HEAD_DIM, MAX_GROUP_SIZE },
  entry: "attention_prefill_hopper",
  pointers: [
    ...(["out", "qkv", "maps", "block_tables", "row_slots", "cu_seqlens_q", "context_lens"] as const),
    ...(["queue", "keys", "values", "sinks"] as const),
  ],
  scalars: [
    "qkv_heads",
    "num_kv_heads",
    "first_row",
    "num_rows",
    "max_blocks",
    "scale_log2",
    "window",
    "value_scale",
    "cap_log2",
  ],
} as const;

/** Tensor maps of a layer's keys and values, in device memory, and what they were made for. That cache may be gone. */
interface CacheMaps {
  readonly valuesAddress: number;
  readonly size: number;
  readonly memory: DeviceBuffer;
}

/** Attention of rows with several query tokens, on Hopper: `attention_prefill_hopper.cu`. */
export class HopperPrefill {
  readonly #kernels: KernelVariants<typeof ATTENTION_PREFILL_HOPPER>;
  /** By the address of a layer's keys and its heads: layers with other heads may have other blocks of the same memory. */
  readonly #maps = new Map<string, CacheMaps>();
  /** uint32 [2], always 0 between launches. */
  #queue: DeviceBuffer | undefined;

  constructor(
    library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    this.#kernels = new KernelVariants(library, ATTENTION_PREFILL_HOPPER, options.dtype, options);
  }

  /** Heads and blocks that the kernel can take: there is no room for codes beside what blocks of a cluster exchange. */
  static takes(shape: HeadShape): boolean {
    const { headDim, blockSize, float8 } = shape;
    const isAligned = headDim % SWIZZLE_WIDTH === 0 && blockSize % SWIZZLE_ROWS === 0;
    return isAligned && !(float8 && clusterOf(shape) > 1);
  }

  unit(shape: HeadShape, form: AttentionForm): KernelUnit {
    return this.#kernels.unit(defines(shape, form));
  }

  /** Rows from batch.decodeRows on. The first use of a layer's cache, or of a new one, allocates and uploads. */
  launch(
    stream: number,
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
    shape: HeadShape,
  ): void {
    const { decodeRows, numRows } = batch;
    const { numKvHeads } = spec;
    const { smCount, dtype, allocateZeroed } = this.options;
    const form = attentionFormOf(spec);
    const rows = numRows - decodeRows;
    const tiles = Math.ceil((batch.maxQueryLen * shape.group) / ROWS) * rows * numKvHeads;
    const tileRows = queryStages(shape) * ROWS + 2 * PREFILL_STAGES * keysOf(shape);
    const codeRows = shape.float8 ? PREFILL_CODE_STAGES * keysOf(shape) : 0;
    const cluster = clusterOf(shape);
    const scoreBytes = cluster > 1 ? ROWS * keysOf(shape) * SCORE_BYTES : 0;
    const sharedBytes =
      ((tileRows * dtypeSize(dtype) + codeRows) * shape.headDim) / cluster +
      scoreBytes +
      PREFILL_CONTROL_BYTES;
    const blocks = Math.min(Math.floor(smCount / cluster), tiles) * cluster;
    this.#queue ??= allocateZeroed(8);
    this.#kernels
      .get(headKey(shape) * FORM_KEYS + formKey(form), defines(shape, form))
      .launch(stream, blocks, 1, 1, (PREFILL_CONSUMERS + 1) * 4 * WARP, sharedBytes, {
        ...{ out, qkv, maps: shape.float8 ? null : this.#mapsOf(cache, shape), queue: this.#queue },
        ...{ keys: cache.keys, values: cache.values, value_scale: cache.valueScale ?? 1 },
        ...{ ...contextArguments(batch, spec), ...scoreArguments(spec, cache) },
        cu_seqlens_q: batch.cuSeqlensQ,
        qkv_heads: qkv.dim(1) / shape.headDim,
        num_kv_heads: numKvHeads,
        first_row: decodeRows,
        num_rows: rows,
      });
  }

  /** New maps get memory of their own: the copy engine may remember what it read at an address. */
  #mapsOf({ keys, values }: LayerCache, shape: HeadShape): DeviceBuffer {
    const key = `${keys.address} ${headKey(shape)}`;
    const known = this.#maps.get(key);
    if (known?.valuesAddress === values.address && known.size === keys.size) return known.memory;
    const bytes = new Uint8Array(2 * TENSOR_MAP_BYTES);
    for (const [i, { address, size }] of [keys, values].entries()) {
      bytes.set(this.#encode(address, size / shape.headDim, shape), i * TENSOR_MAP_BYTES);
    }
    const memory = this.options.allocateZeroed(bytes.length);
    this.options.upload(memory.address, bytes);
    this.#maps.set(key, { valuesAddress: values.address, size: keys.size, memory });
    return memory;
  }

  #encode(address: number, rows: number, shape: HeadShape): Uint8Array {
    const { headDim } = shape;
    const { dtype, encodeTensorMap } = this.options;
    const rowBytes = headDim * dtypeSize(dtype);
    const halves = headDim / SWIZZLE_WIDTH;
    return encodeTensorMap({
      ...{ dtype: dtype === "float16" ? "float16" : "bfloat16", address },
      extents: [SWIZZLE_WIDTH, SWIZZLE_ROWS, halves, rows / SWIZZLE_ROWS],
      strides: [rowBytes, SWIZZLE_WIDTH * dtypeSize(dtype), SWIZZLE_ROWS * rowBytes],
      box: [SWIZZLE_WIDTH, SWIZZLE_ROWS, halves / clusterOf(shape), boxRows(shape) / SWIZZLE_ROWS],
    });
  }
}

function defines(shape: HeadShape, form: AttentionForm): Macros {
  return {
    ...{ ...headDefines(shape), ...scoreDefines(form) },
    PREFILL_KEYS: keysOf(shape),
    PREFILL_BOX: boxRows(shape),
    PREFILL_QUERY_STAGES: queryStages(shape),
    PREFILL_CLUSTER: clusterOf(shape),
    ...(shape.float8 && { PREFILL_CODE_STAGES }),
  };
}

/** Blocks that share query tiles, each with a part of the dimensions. */
function clusterOf({ headDim }: HeadShape): number {
  return Math.ceil(headDim / MAX_BLOCK_DIM);
}

/** Keys of a step: as many as registers hold scores for, beside the results. */
function keysOf({ headDim }: HeadShape): number {
  return headDim <= 128 ? 128 : 64;
}

/** Tokens of one copy: a block, or the tile if that is smaller. */
function boxRows(shape: HeadShape): number {
  return Math.min(shape.blockSize, keysOf(shape));
}

/** Tiles of queries that are in shared memory at once: the next one where there is room. */
function queryStages({ headDim }: HeadShape): number {
  return headDim <= 128 ? 2 : 1;
}
