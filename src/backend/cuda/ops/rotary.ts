import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { InvariantError } from "../../../base/errors.ts";
import type { AttentionSpec, BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { KernelVariants, VECTOR_BYTES, WARP, wholeWarps } from "./kernel-variants.ts";

const MAX_THREADS = 256;

const ROPE_STORE = {
  file: "rotary.cu",
  entry: "rope_store",
  pointers: [
    ...(["qkv", "keys", "values", "cos_sin", "positions", "slot_mapping"] as const),
    ...(["query_norm", "key_norm"] as const),
  ],
  scalars: ["heads", "kv_heads", "block_size", "eps"],
} as const;

/** How a warp takes heads: `lanes` neighbouring lanes share one, each with `pairs` pairs of dimensions at a time. */
interface HeadShape {
  readonly pairs: number;
  readonly lanes: number;
}

/** Query and key norm, rotary embedding, and the store to the paged cache. */
export class RotaryOps {
  readonly #ropeStore: KernelVariants<typeof ROPE_STORE>;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#ropeStore = new KernelVariants(library, ROPE_STORE, dtype, options);
  }

  units(headDim: number, rotaryDim: number): KernelUnit[] {
    return [this.#ropeStore.unit(defines(headDim, rotaryDim, headShape(this.dtype, headDim, rotaryDim)))];
  }

  /**
   * The first part of `Backend.attend`, whose checks have passed: queries are rotated in place, keys and values go to the
   * cache alone, so the key part of `qkv` stays as it was.
   */
  ropeAndStoreKv(
    stream: number,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
  ): void {
    const { numHeads, numKvHeads, headDim, cosSin, headNorm } = spec;
    const { keys, values } = cache;
    const [tokens, rotaryDim] = [qkv.dim(0), cosSin.dim(1)];
    const shape = headShape(this.dtype, headDim, rotaryDim);
    checkAlignment(shape, qkv, keys, values, cosSin, headNorm?.query, headNorm?.key);
    const heads = numHeads + 2 * numKvHeads;
    const threads = blockThreads(heads, shape);
    const blocks = Math.ceil((heads * shape.lanes) / threads);
    this.#ropeStore
      .get(headDim * 65536 + rotaryDim, defines(headDim, rotaryDim, shape))
      .launch(stream, tokens, blocks, 1, threads, 0, {
        qkv,
        keys,
        values,
        cos_sin: cosSin,
        positions: batch.positions,
        slot_mapping: batch.slotMapping,
        query_norm: headNorm?.query ?? null,
        key_norm: headNorm?.key ?? null,
        heads: numHeads,
        kv_heads: numKvHeads,
        block_size: batch.blockSize,
        eps: headNorm?.eps ?? 0,
      });
  }
}

/** As many pairs as a vector has elements, where both parts of a head divide by them; lanes for all of a head, up to a warp. */
function headShape(dtype: FloatDType, headDim: number, rotaryDim: number): HeadShape {
  let pairs = VECTOR_BYTES / dtypeSize(dtype);
  while ((rotaryDim / 2) % pairs !== 0 || ((headDim - rotaryDim) / 2) % pairs !== 0) pairs /= 2;
  const pieces = headDim / 2 / pairs;
  return { pairs, lanes: Math.min(WARP, 2 ** Math.ceil(Math.log2(pieces))) };
}

function defines(headDim: number, rotaryDim: number, { pairs, lanes }: HeadShape): Macros {
  return { HEAD_DIM: headDim, ROTARY_DIM: rotaryDim, HEAD_PAIRS: pairs, HEAD_LANES: lanes };
}

function blockThreads(heads: number, { lanes }: HeadShape): number {
  return Math.min(MAX_THREADS, wholeWarps(heads * lanes));
}

/** Tensors must start at vectors where the kernel accesses vectors. */
function checkAlignment({ pairs }: HeadShape, ...tensors: readonly (Tensor | undefined)[]): void {
  if (pairs < 4) return;
  for (const tensor of tensors) {
    if (tensor !== undefined && tensor.address % VECTOR_BYTES !== 0)
      throw new InvariantError(`attend: ${tensor} is not ${VECTOR_BYTES}-byte aligned`);
  }
}
