import type { FloatDType } from "../../../base/dtype.ts";
import { InvariantError } from "../../../base/errors.ts";
import type { ProjectionNormSpec } from "../../attention-spec.ts";
import { checkLayerNorm, checkNormProjections, checkRmsNorm } from "../../checks.ts";
import type { DeviceBuffer, Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { Scratch } from "../scratch.ts";
import type { CandidateExchange } from "./candidates.ts";
import { accessWidth, type KernelDeclaration, KernelVariants, wholeWarps } from "./kernel-variants.ts";

const MAX_THREADS = 512;
/** Accesses of one thread that still fit in registers. */
const MAX_ACCESSES = 32;

const SOURCE = { file: "norm.cu", constants: { MAX_THREADS, MAX_ACCESSES } } as const;
const RMS_NORM = {
  ...SOURCE,
  entry: "rms_norm",
  pointers: ["out", "x", "weight"],
  scalars: ["width", "eps"],
} as const;
const RMS_NORM_ADD = {
  ...SOURCE,
  entry: "rms_norm_add",
  pointers: ["out", "x", "weight", "add_to", "factor"],
  scalars: ["width", "eps"],
} as const;
const LAYER_NORM = {
  ...SOURCE,
  entry: "layer_norm",
  pointers: ["out", "x", "weight", "bias"],
  scalars: ["width", "eps"],
} as const;

const SUM_PROJECTIONS = {
  ...SOURCE,
  entry: "sum_projections",
  pointers: ["squares", "qkv"],
  scalars: ["query_width", "key_width"],
} as const;
const NORM_PROJECTIONS = {
  ...SOURCE,
  entry: "norm_projections",
  pointers: ["qkv", "query", "key", "squares"],
  scalars: ["ranks", "query_width", "key_width", "eps"],
} as const;

export interface NormOptions extends KernelOptions {
  /** The ranks that divide a model's heads; undefined: there is one. */
  readonly ranks?: CandidateExchange | undefined;
  /** Memory that is not freed while a graph may hold it. */
  readonly allocate: (byteLength: number) => DeviceBuffer;
}

/** A block's accesses to a row. */
interface RowShape {
  readonly access: number;
  readonly accesses: number;
  readonly threads: number;
}

/** Normalisation over the last dimension. */
export class NormOps {
  readonly #rmsNorm: KernelVariants<typeof RMS_NORM>;
  readonly #rmsNormAdd: KernelVariants<typeof RMS_NORM_ADD>;
  readonly #layerNorm: KernelVariants<typeof LAYER_NORM>;
  readonly #sumProjections: KernelVariants<typeof SUM_PROJECTIONS>;
  readonly #normProjections: KernelVariants<typeof NORM_PROJECTIONS>;
  /** Sums of squares of this rank, and of all. */
  readonly #sums: Scratch;
  readonly #allSums: Scratch;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    private readonly options: NormOptions,
  ) {
    this.#rmsNorm = new KernelVariants(library, RMS_NORM, dtype, options);
    this.#rmsNormAdd = new KernelVariants(library, RMS_NORM_ADD, dtype, options);
    this.#layerNorm = new KernelVariants(library, LAYER_NORM, dtype, options);
    this.#sumProjections = new KernelVariants(library, SUM_PROJECTIONS, dtype, options);
    this.#normProjections = new KernelVariants(library, NORM_PROJECTIONS, dtype, options);
    this.#sums = new Scratch(options.allocate);
    this.#allSums = new Scratch(options.allocate);
  }

  /** Units for rows of `width` elements, in tensors that are aligned to vectors. */
  units(width: number): KernelUnit[] {
    const access = accessWidth(this.dtype, width);
    return [this.#rmsNorm.unit({ ACCESS: access, ACCESSES: accessesOf(width, access) })];
  }

  /** See `Backend.rmsNorm`. */
  rmsNorm(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: number,
    addTo?: Tensor,
    scale?: Tensor,
  ): void {
    const { tokens, width } = checkRmsNorm(this.dtype, out, x, weight, addTo, scale);
    if (tokens === 0) return;
    const shape = rowShape(width, accessWidth(this.dtype, width, out, x, weight, addTo));
    const args = { out, x, weight, width, eps };
    if (addTo === undefined) {
      variant(this.#rmsNorm, shape).launch(stream, tokens, 1, 1, shape.threads, 0, args);
      return;
    }
    const sum = { ...args, add_to: addTo, factor: scale ?? null };
    variant(this.#rmsNormAdd, shape).launch(stream, tokens, 1, 1, shape.threads, 0, sum);
  }

  /** See `Backend.layerNorm`. */
  layerNorm(
    stream: number,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | undefined,
    eps: number,
  ): void {
    const { tokens, width } = checkLayerNorm(this.dtype, out, x, weight, bias);
    if (tokens === 0) return;
    const shape = rowShape(width, accessWidth(this.dtype, width, out, x, weight, bias));
    const args = { out, x, weight, bias: bias ?? null, width, eps };
    variant(this.#layerNorm, shape).launch(stream, tokens, 1, 1, shape.threads, 0, args);
  }

  /** See `Backend.normProjections`. Scratch is allocated when ranks have more tokens than ever before. */
  normProjections(stream: number, qkv: Tensor, norm: ProjectionNormSpec): void {
    const { query, key, eps } = norm;
    const { tokens, queryWidth, keyWidth } = checkNormProjections(this.dtype, qkv, norm);
    if (tokens === 0) return;
    // Both parts of a token begin at a vector if both widths are whole vectors.
    const access = Math.min(
      ...[queryWidth, keyWidth].map((width) => accessWidth(this.dtype, width, qkv, query, key)),
    );
    const shape = rowShape(Math.max(queryWidth, keyWidth), access);
    const widths = { query_width: queryWidth, key_width: keyWidth };
    const { ranks } = this.options;
    const squares = ranks && this.#allSums.tensor("float32", [1, ranks.size * tokens * 2]);
    if (ranks !== undefined) {
      const own = this.#sums.tensor("float32", [1, tokens * 2]);
      const args = { squares: own, qkv, ...widths };
      variant(this.#sumProjections, shape).launch(stream, tokens, 2, 1, shape.threads, 0, args);
      ranks.gatherColumns(squares!, own);
    }
    const args = { qkv, query, key, squares: squares ?? null, ranks: ranks?.size ?? 1, ...widths, eps };
    variant(this.#normProjections, shape).launch(stream, tokens, 2, 1, shape.threads, 0, args);
  }
}

function rowShape(width: number, access: number): RowShape {
  const accesses = accessesOf(width, access);
  return { access, accesses, threads: wholeWarps(width / access / accesses) };
}

function variant<K extends KernelDeclaration>(variants: KernelVariants<K>, { access, accesses }: RowShape) {
  const key = access * (MAX_ACCESSES + 1) + accesses;
  return variants.get(key, { ACCESS: access, ACCESSES: accesses });
}

/** Accesses of each thread, a power of two. */
function accessesOf(width: number, access: number): number {
  const accesses = 2 ** Math.ceil(Math.log2(Math.max(1, width / access / MAX_THREADS)));
  if (accesses > MAX_ACCESSES) throw new InvariantError(`normalisation over ${width} elements is too wide`);
  return accesses;
}
