import type { FloatDType } from "../../../base/dtype.ts";
import type { AttentionSpec, BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { type HeadPart, headPart, headPartDefines } from "./head-part.ts";
import { KernelVariants, wholeWarps } from "./kernel-variants.ts";

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

/** Query and key norm, rotary embedding, and the store to the paged cache, of tokens whose attention another kernel does. */
export class RotaryOps {
  readonly #ropeStore: KernelVariants<typeof ROPE_STORE>;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#ropeStore = new KernelVariants(library, ROPE_STORE, dtype, options);
  }

  unit(headDim: number, rotaryDim: number): KernelUnit {
    return this.#ropeStore.unit(defines(headDim, rotaryDim, headPart(this.dtype, headDim, rotaryDim)));
  }

  /**
   * A part of `Backend.attend`, whose checks have passed, for tokens from `firstToken` on: queries are rotated in place, keys
   * and values go to the cache alone, so the key part of `qkv` stays as it was.
   */
  ropeAndStoreKv(
    stream: number,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
    firstToken: number,
  ): void {
    const { numHeads, numKvHeads, headDim, cosSin, headNorm } = spec;
    const { keys, values } = cache;
    const [tokens, rotaryDim] = [qkv.dim(0), cosSin.dim(1)];
    const part = headPart(this.dtype, headDim, rotaryDim);
    const heads = numHeads + 2 * numKvHeads;
    const threads = blockThreads(heads, part);
    const blocks = Math.ceil((heads * part.lanes) / threads);
    const fromFirst = (tensor: Tensor) => (firstToken === 0 ? tensor : tensor.rows(firstToken, tokens));
    this.#ropeStore
      .get(headDim * 65536 + rotaryDim, defines(headDim, rotaryDim, part))
      .launch(stream, tokens - firstToken, blocks, 1, threads, 0, {
        qkv: fromFirst(qkv),
        keys,
        values,
        cos_sin: cosSin,
        positions: fromFirst(batch.positions),
        slot_mapping: fromFirst(batch.slotMapping),
        query_norm: headNorm?.query ?? null,
        key_norm: headNorm?.key ?? null,
        heads: numHeads,
        kv_heads: numKvHeads,
        block_size: batch.blockSize,
        eps: headNorm?.eps ?? 0,
      });
  }
}

function defines(headDim: number, rotaryDim: number, part: HeadPart): Macros {
  return { HEAD_DIM: headDim, ...headPartDefines(rotaryDim, part) };
}

function blockThreads(heads: number, { lanes }: HeadPart): number {
  return Math.min(MAX_THREADS, wholeWarps(heads * lanes));
}
