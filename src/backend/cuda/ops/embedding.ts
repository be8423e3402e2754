import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { checkEmbedding, checkGatherRows } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { accessWidth, KernelVariants, wholeWarps } from "./kernel-variants.ts";

const MAX_THREADS = 256;

const GATHER_ROWS = {
  file: "embedding.cu",
  entry: "gather_rows",
  pointers: ["out", "table", "ids"],
  scalars: ["units", "first", "rows"],
} as const;

/** Row copies by index. */
export class EmbeddingOps {
  readonly #gather: KernelVariants<typeof GATHER_ROWS>;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#gather = new KernelVariants(library, GATHER_ROWS, dtype, options);
  }

  /** Units for rows of `width` elements, in tensors that are aligned to vectors. */
  units(width: number): KernelUnit[] {
    return [this.#gather.unit({ COPY_BYTES: accessWidth(this.dtype, width) * dtypeSize(this.dtype) })];
  }

  /** See `Backend.embedding`. @param firstId of the table's first row; ids of other rows give zeros. */
  embedding(stream: number, out: Tensor, table: Tensor, ids: Tensor, firstId = 0): void {
    const { tokens, width } = checkEmbedding(this.dtype, out, table, ids);
    this.#launch(stream, out, table, ids, tokens, width, firstId);
  }

  /** See `Backend.gatherRows`. */
  gatherRows(stream: number, out: Tensor, x: Tensor, rows: Tensor): void {
    const { count, width } = checkGatherRows(this.dtype, out, x, rows);
    this.#launch(stream, out, x, rows, count, width);
  }

  #launch(
    stream: number,
    out: Tensor,
    table: Tensor,
    ids: Tensor,
    count: number,
    width: number,
    first = 0,
  ): void {
    if (count === 0) return;
    const access = accessWidth(this.dtype, width, out, table);
    const copyBytes = access * dtypeSize(this.dtype);
    const units = width / access;
    const threads = Math.min(MAX_THREADS, wholeWarps(units));
    this.#gather
      .get(copyBytes, { COPY_BYTES: copyBytes })
      .launch(stream, count, 1, 1, threads, 0, { out, table, ids, units, first, rows: table.dim(0) });
  }
}
