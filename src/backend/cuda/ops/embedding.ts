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

const EMBED_SCALED = {
  file: "embedding.cu",
  entry: "embed_scaled",
  pointers: ["out", "table", "ids"],
  scalars: ["units", "first", "rows", "scale"],
} as const;

/** Row copies by index. */
export class EmbeddingOps {
  readonly #gather: KernelVariants<typeof GATHER_ROWS>;
  readonly #scaled: KernelVariants<typeof EMBED_SCALED>;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#gather = new KernelVariants(library, GATHER_ROWS, dtype, options);
    this.#scaled = new KernelVariants(library, EMBED_SCALED, dtype, options);
  }

  /** Units for rows of `width` elements, in tensors that are aligned to vectors. */
  units(width: number): KernelUnit[] {
    return [this.#gather.unit({ COPY_BYTES: accessWidth(this.dtype, width) * dtypeSize(this.dtype) })];
  }

  /** See `Backend.embedding`. */
  embedding(stream: number, out: Tensor, table: Tensor, ids: Tensor, firstId = 0, scale = 1): void {
    const { tokens, width } = checkEmbedding(this.dtype, out, table, ids);
    this.#launch(stream, out, table, ids, tokens, width, firstId, scale);
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
    scale = 1,
  ): void {
    if (count === 0) return;
    const access = accessWidth(this.dtype, width, out, table);
    const copyBytes = access * dtypeSize(this.dtype);
    const defines = { COPY_BYTES: copyBytes };
    const units = width / access;
    const threads = Math.min(MAX_THREADS, wholeWarps(units));
    const args = { out, table, ids, units, first, rows: table.dim(0) };
    if (scale === 1) this.#gather.get(copyBytes, defines).launch(stream, count, 1, 1, threads, 0, args);
    else this.#scaled.get(copyBytes, defines).launch(stream, count, 1, 1, threads, 0, { ...args, scale });
  }
}
