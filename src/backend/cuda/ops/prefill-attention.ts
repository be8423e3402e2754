import { dtypeSize } from "../../../base/dtype.ts";
import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { contextArguments, scoreArguments } from "./attention-arguments.ts";
import { FORM_KEYS, formKey, scoreDefines } from "./attention-form.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { type HeadShape, headDefines, headKey, MAX_GROUP_SIZE, MAX_HEAD_DIM } from "./head-shape.ts";
import { KernelVariants, WARP } from "./kernel-variants.ts";

const PREFILL_WARPS = 4;
/** Keys of a step. */
const PREFILL_KEYS = 64;
/** Elements between rows in a block's shared memory: they spread the rows over its banks. */
const PREFILL_PADDING = 8;
/** The same of rows in eight bits. */
const CODE_PADDING = 16;

const ATTENTION_PREFILL = {
  file: "attention_prefill.cu",
  constants: { PREFILL_WARPS, PREFILL_KEYS, PREFILL_PADDING, MAX_HEAD_DIM, MAX_GROUP_SIZE },
  entry: "attention_prefill",
  pointers: [
    ...(["out", "qkv", "keys", "values", "block_tables", "row_slots", "cu_seqlens_q"] as const),
    ...(["context_lens", "sinks"] as const),
  ],
  scalars: ["first_row", "max_blocks", "scale_log2", "window", "value_scale", "cap_log2"],
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
    return this.#kernels.unit(prefillDefines(shape, form));
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
    const rows = prefillRows(shape);
    const rowBytes = (shape.headDim + PREFILL_PADDING) * dtypeSize(this.options.dtype);
    const cachedBytes = shape.float8 ? shape.headDim + CODE_PADDING : rowBytes;
    this.#kernels
      .get(headKey(shape) * FORM_KEYS + formKey(form), prefillDefines(shape, form))
      .launch(
        stream,
        Math.ceil((batch.maxQueryLen * shape.group) / rows),
        spec.numKvHeads,
        numRows - decodeRows,
        PREFILL_WARPS * WARP,
        rows * rowBytes + 2 * PREFILL_KEYS * cachedBytes,
        {
          ...{ out, qkv, keys: cache.keys, values: cache.values },
          ...{ ...contextArguments(batch, spec), ...scoreArguments(spec, cache) },
          cu_seqlens_q: batch.cuSeqlensQ,
          first_row: decodeRows,
          value_scale: cache.valueScale ?? 1,
        },
      );
  }
}

function prefillDefines(shape: HeadShape, form: AttentionForm): Macros {
  return {
    ...{ ...headDefines(shape), ...scoreDefines(form) },
    PREFILL_ROWS: prefillRows(shape),
    ...(shape.float8 && { CODE_PADDING }),
  };
}

/** Packed query rows of a tile: as many as registers hold results for. */
function prefillRows({ headDim }: HeadShape): number {
  return headDim <= 128 ? 128 : 64;
}
