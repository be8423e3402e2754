import type { FloatDType } from "../../../base/dtype.ts";
import { type AttentionForm, type AttentionSpec, attentionFormOf } from "../../attention-spec.ts";
import type { BatchTensors, LayerCache } from "../../backend.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit, Macros } from "../kernel-source.ts";
import { FORM_KEYS, formKey, projectionDefines } from "./attention-form.ts";
import { type HeadPart, headPart, headPartDefines } from "./head-part.ts";
import { cacheDefines } from "./head-shape.ts";
import { KernelVariants } from "./kernel-variants.ts";

const ROPE_THREADS = 128;
/** Heads that a thread takes of a token where there are enough threads: more bytes are under way then. */
const MOST_HEADS = 4;
/** From so many threads with a head each on, about as many as a GPU runs at once; fewer are done sooner with one head. */
const ENOUGH_THREADS = 2 ** 18;

const ROPE_STORE = {
  file: "rotary.cu",
  constants: { ROPE_THREADS },
  entry: "rope_store",
  pointers: [
    ...(["qkv", "keys", "values", "cos_sin", "positions", "slot_mapping"] as const),
    ...(["query_norm", "key_norm", "query_scales"] as const),
  ],
  scalars: ["tokens", "heads", "kv_heads", "block_size", "eps", "key_scale", "value_scale"],
} as const;

/** Norm, rotary embedding, and the store to the paged cache, of tokens whose attention another kernel does. */
export class RotaryOps {
  readonly #ropeStore: KernelVariants<typeof ROPE_STORE>;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#ropeStore = new KernelVariants(library, ROPE_STORE, dtype, options);
  }

  /** For few tokens and for many. */
  units(headDim: number, form: AttentionForm, float8: boolean): KernelUnit[] {
    const part = headPart(this.dtype, headDim, form.rotaryDim);
    return [1, MOST_HEADS].map((heads) => this.#ropeStore.unit(defines(headDim, form, part, heads, float8)));
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
    const { numHeads, headDim, cosSin, queryScales, headNorm } = spec;
    const numKvHeads = spec.readsOnly ? 0 : spec.numKvHeads;
    const form = attentionFormOf(spec);
    const { keys, values, keyScale = 1, valueScale = 1 } = cache;
    const float8 = keys.dtype === "float8_e4m3";
    const end = qkv.dim(0);
    const part = headPart(this.dtype, headDim, form.rotaryDim);
    const tokens = end - firstToken;
    const heads = numHeads + 2 * numKvHeads;
    const headsOfThread = tokens * heads * part.lanes < ENOUGH_THREADS ? 1 : MOST_HEADS;
    const groups = Math.ceil(heads / headsOfThread);
    const blocks = Math.ceil((tokens * groups * part.lanes) / ROPE_THREADS);
    const fromFirst = (tensor: Tensor) => (firstToken === 0 ? tensor : tensor.rows(firstToken, end));
    this.#ropeStore
      .get(
        (((headsOfThread * 2 + Number(float8)) * 4096 + headDim) * 4096 + form.rotaryDim) * FORM_KEYS +
          formKey(form),
        defines(headDim, form, part, headsOfThread, float8),
      )
      .launch(stream, blocks, 1, 1, ROPE_THREADS, 0, {
        qkv: fromFirst(qkv),
        keys,
        values,
        cos_sin: cosSin ?? null,
        positions: fromFirst(batch.positions),
        slot_mapping: fromFirst(batch.slotMapping),
        query_norm: headNorm?.query ?? null,
        key_norm: headNorm?.key ?? null,
        query_scales: queryScales ?? null,
        tokens,
        heads: numHeads,
        kv_heads: numKvHeads,
        block_size: batch.blockSize,
        eps: headNorm?.eps ?? 0,
        ...{ key_scale: keyScale, value_scale: valueScale },
      });
  }
}

function defines(
  headDim: number,
  form: AttentionForm,
  part: HeadPart,
  headsOfThread: number,
  float8: boolean,
): Macros {
  const heads = { HEAD_DIM: headDim, ROPE_HEADS: headsOfThread };
  return {
    ...heads,
    ...headPartDefines(form.rotaryDim, part),
    ...cacheDefines(float8),
    ...projectionDefines(form),
  };
}
