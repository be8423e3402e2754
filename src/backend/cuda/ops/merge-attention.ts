import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { Addressed } from "../argument-packer.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { scoreArguments } from "./attention-arguments.ts";
import { FORM_KEYS, formKey } from "./attention-form.ts";
import type { AttentionOptions } from "./attention-options.ts";
import { DECODE_CONSTANTS, decodeDefines } from "./decode-tiles.ts";
import { type HeadShape, headKey } from "./head-shape.ts";
import { KernelVariants } from "./kernel-variants.ts";

/** Pairs of dimensions of a block, and the threads that share one. */
const MERGE_PAIRS = 64;
const MERGE_PARTS = 4;

const ATTENTION_MERGE = {
  file: "attention_merge.cu",
  constants: { ...DECODE_CONSTANTS, MERGE_PAIRS, MERGE_PARTS },
  entry: "attention_merge",
  pointers: ["out", "partials", "partial_stats", "row_slots", "context_lens", "sinks"],
  scalars: ["max_splits", "window", "min_split_tiles", "value_scale"],
} as const;

/** What `attention_decode.cu` has left of rows in splits. */
export interface SplitResults {
  readonly partials: Addressed;
  readonly stats: Addressed;
  /** See `DecodeSplits`. */
  readonly splits: number;
  readonly minTiles: number;
}

/** Results of wide heads' splits become those of rows: `attention_merge.cu`. */
export class MergeAttention {
  readonly #kernels: KernelVariants<typeof ATTENTION_MERGE>;

  constructor(library: KernelLibrary, options: AttentionOptions) {
    this.#kernels = new KernelVariants(library, ATTENTION_MERGE, options.dtype, options);
  }

  unit(shape: HeadShape, form: AttentionForm): KernelUnit {
    return this.#kernels.unit(decodeDefines(shape, form));
  }

  /** Of rows [0, batch.decodeRows). */
  launch(
    stream: number,
    out: Tensor,
    { partials, stats, splits, minTiles }: SplitResults,
    { valueScale = 1 }: LayerCache,
    { rowSlots, contextLens, decodeRows }: BatchTensors,
    spec: AttentionSpec,
    shape: HeadShape,
  ): void {
    const form = attentionFormOf(spec);
    const blocks = (shape.group * shape.headDim) / 2 / MERGE_PAIRS;
    this.#kernels
      .get(headKey(shape) * FORM_KEYS + formKey(form), decodeDefines(shape, form))
      .launch(stream, blocks, spec.numKvHeads, decodeRows, MERGE_PAIRS * MERGE_PARTS, 0, {
        ...{ out, partials, partial_stats: stats },
        ...{ row_slots: rowSlots, context_lens: contextLens, window: spec.window },
        ...{ max_splits: splits, min_split_tiles: minTiles },
        ...{ value_scale: valueScale, sinks: scoreArguments(spec, {}).sinks },
      });
  }
}
