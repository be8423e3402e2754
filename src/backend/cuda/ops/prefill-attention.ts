import { dtypeSize } from "../../../base/dtype.ts";
import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { contextArguments, scoreArguments } from "./attention-arguments.ts";
import { FORM_KEYS, formKey, scoreDefines } from "./attention-form.ts";
import type { AttentionOptions } from "./attention-options.ts";
import {
  type HeadShape,
  headDefines,
  headKey,
  MAX_GROUP_SIZE,
  MAX_HEAD_DIM,
  MAX_NARROW_DIM,
} from "./head-shape.ts";
import { KernelVariants, VECTOR_BYTES, WARP } from "./kernel-variants.ts";

/** What a block of the kernel takes at a time. */
interface PrefillTile {
  /** Packed query rows. */
  readonly rows: number;
  /** Keys of a step. */
  readonly keys: number;
  readonly warps: number;
  /** Warps that share rows: each has scores of a part of the keys, and results of a part of the dimensions. */
  readonly columns: number;
}

/** Of heads whose results fit a warp's registers: as many rows as do. */
const NARROW: PrefillTile = { rows: 128, keys: 64, warps: 4, columns: 1 };
const WIDE: PrefillTile = { ...NARROW, rows: 64 };
const NARROW_DIM = 128;
/** Of heads wider than that, the better first: what a block needs decides, 200, 133 and 98 KiB of keys in 16 bits. */
const SHARED: readonly PrefillTile[] = [
  { rows: 64, keys: 64, warps: 8, columns: 2 },
  { rows: 64, keys: 32, warps: 8, columns: 2 },
  { rows: 32, keys: 32, warps: 4, columns: 2 },
];

const ATTENTION_PREFILL = {
  file: "attention_prefill.cu",
  constants: { MAX_HEAD_DIM, MAX_GROUP_SIZE },
  entry: "attention_prefill",
  pointers: [
    ...(["out", "qkv", "keys", "values", "block_tables", "row_slots", "cu_seqlens_q"] as const),
    ...(["context_lens", "sinks"] as const),
  ],
  scalars: [
    ...(["qkv_heads", "first_row", "max_blocks"] as const),
    ...(["scale_log2", "window", "value_scale", "cap_log2"] as const),
  ],
} as const;

/** Attention of rows with several query tokens, on every GPU: `attention_prefill.cu`. */
export class PrefillAttention {
  readonly #kernels: KernelVariants<typeof ATTENTION_PREFILL>;

  constructor(
    library: KernelLibrary,
    private readonly options: AttentionOptions,
  ) {
    this.#kernels = new KernelVariants(library, ATTENTION_PREFILL, options.dtype, options);
  }

  unit(shape: HeadShape, form: AttentionForm): KernelUnit {
    return this.#kernels.unit(defines(shape, form, this.#tile(shape)));
  }

  /** Rows from batch.decodeRows on. */
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
    const form = attentionFormOf(spec);
    const tile = this.#tile(shape);
    this.#kernels
      .get(headKey(shape) * FORM_KEYS + formKey(form), defines(shape, form, tile))
      .launch(
        stream,
        Math.ceil((batch.maxQueryLen * shape.group) / tile.rows),
        spec.numKvHeads,
        numRows - decodeRows,
        tile.warps * WARP,
        sharedBytes(tile, shape, dtypeSize(this.options.dtype)),
        {
          ...{ out, qkv, keys: cache.keys, values: cache.values },
          ...{ ...contextArguments(batch, spec), ...scoreArguments(spec, cache) },
          cu_seqlens_q: batch.cuSeqlensQ,
          qkv_heads: qkv.dim(1) / shape.headDim,
          first_row: decodeRows,
          value_scale: cache.valueScale ?? 1,
        },
      );
  }

  #tile(shape: HeadShape): PrefillTile {
    if (shape.headDim <= MAX_NARROW_DIM) return shape.headDim <= NARROW_DIM ? NARROW : WIDE;
    const { dtype, sharedBytesPerBlock } = this.options;
    const fits = (tile: PrefillTile) => sharedBytes(tile, shape, dtypeSize(dtype)) <= sharedBytesPerBlock;
    return SHARED.find(fits) ?? SHARED.at(-1)!;
  }
}

/**
 * Shared memory of a block: queries, keys and values, in padded rows; with columns in rows without, and also probabilities, and a
 * float of each column's rows.
 */
function sharedBytes(
  { rows, keys, columns }: PrefillTile,
  { headDim, float8 }: HeadShape,
  elementBytes: number,
): number {
  const padding = columns === 1 ? VECTOR_BYTES : 0;
  const cachedBytes = headDim * (float8 ? 1 : elementBytes) + padding;
  const tiles = rows * (headDim * elementBytes + padding) + 2 * keys * cachedBytes;
  return columns === 1 ? tiles : tiles + rows * (keys * elementBytes + columns * 4);
}

function defines(shape: HeadShape, form: AttentionForm, { rows, keys, warps, columns }: PrefillTile): Macros {
  return {
    ...{ ...headDefines(shape), ...scoreDefines(form) },
    ...{ PREFILL_ROWS: rows, PREFILL_KEYS: keys, PREFILL_WARPS: warps, PREFILL_COLUMNS: columns },
  };
}
