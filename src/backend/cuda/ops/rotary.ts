import { dtypeSize, type FloatDType } from "../../../base/dtype.ts";
import { invariant } from "../../../base/errors.ts";
import type { BatchTensors, LayerCache, RopeStoreSpec } from "../../backend.ts";
import { checkRopeAndStoreKv, checkRotary } from "../../checks.ts";
import type { Tensor } from "../../tensor.ts";
import type { KernelOptions } from "../kernel.ts";
import type { KernelLibrary } from "../kernel-library.ts";
import type { KernelUnit } from "../kernel-source.ts";
import { KernelVariants, VECTOR_BYTES } from "./kernel-variants.ts";

const MAX_THREADS = 256;

/** Rotary embedding, alone or with query/key norm and the store to the paged cache. */
export class RotaryOps {
  readonly #rotary: KernelVariants;
  readonly #ropeStore: KernelVariants;

  constructor(
    library: KernelLibrary,
    private readonly dtype: FloatDType,
    options: KernelOptions = {},
  ) {
    this.#rotary = new KernelVariants(library, "rotary.cu", "rotary", "pppii", dtype, options);
    this.#ropeStore = new KernelVariants(library, "rotary.cu", "rope_store", "ppppppppiiif", dtype, options);
  }

  units(headDim: number, rotaryDim: number): KernelUnit[] {
    return [this.#ropeStore.unit({ HEAD_DIM: headDim, ROTARY_DIM: rotaryDim })];
  }

  /** See `Backend.rotary`. */
  rotary(stream: number, x: Tensor, heads: number, headDim: number, cosSin: Tensor, positions: Tensor): void {
    const { tokens, width, rotaryDim } = checkRotary(this.dtype, x, heads, headDim, cosSin, positions);
    if (tokens === 0 || heads === 0) return;
    this.#checkAlignment("rotary", width, headDim, rotaryDim, x, cosSin);
    const [threads, blocks] = this.#shape(heads, headDim, rotaryDim);
    this.#rotary
      .get(headDim * 65536 + rotaryDim, { HEAD_DIM: headDim, ROTARY_DIM: rotaryDim })
      .launch(
        ...[stream, tokens, blocks, 1, threads, 0],
        ...[x.address, cosSin.address, positions.address, heads, width],
      );
  }

  /** See `Backend.ropeAndStoreKv`. Rotated keys go to the cache alone: the key part of `qkv` stays as it was. */
  ropeAndStoreKv(
    stream: number,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: RopeStoreSpec,
  ): void {
    const { tokens, blockSize, rotaryDim } = checkRopeAndStoreKv(this.dtype, qkv, cache, batch, spec);
    if (tokens === 0) return;
    const { numHeads, numKvHeads, headDim, cosSin, queryNorm, keyNorm, eps } = spec;
    const { keys, values } = cache;
    const vectors = [qkv, keys, values, cosSin, queryNorm, keyNorm];
    this.#checkAlignment("ropeAndStoreKv", qkv.dim(1), headDim, rotaryDim, ...vectors);
    const [threads, blocks] = this.#shape(numHeads + 2 * numKvHeads, headDim, rotaryDim);
    this.#ropeStore
      .get(headDim * 65536 + rotaryDim, { HEAD_DIM: headDim, ROTARY_DIM: rotaryDim })
      .launch(
        ...[stream, tokens, blocks, 1, threads, 0],
        ...[qkv.address, keys.address, values.address, cosSin.address],
        ...[batch.positions.address, batch.slotMapping.address],
        ...[queryNorm?.address ?? 0, keyNorm?.address ?? 0, numHeads, numKvHeads, blockSize, eps],
      );
  }

  /** PAIRS in rotary.cu: pairs of dimensions a lane takes at once. */
  #pairs(headDim: number, rotaryDim: number): number {
    let pairs = VECTOR_BYTES / dtypeSize(this.dtype);
    while ((rotaryDim / 2) % pairs !== 0 || ((headDim - rotaryDim) / 2) % pairs !== 0) pairs /= 2;
    return pairs;
  }

  /** Threads a block, and blocks a token; LANES in rotary.cu is the least power of two that covers a head, up to 32. */
  #shape(heads: number, headDim: number, rotaryDim: number): [threads: number, blocks: number] {
    const pieces = headDim / 2 / this.#pairs(headDim, rotaryDim);
    const lanes = heads * Math.min(32, 2 ** Math.ceil(Math.log2(pieces)));
    const threads = Math.min(MAX_THREADS, Math.ceil(lanes / 32) * 32);
    return [threads, Math.ceil(lanes / threads)];
  }

  #checkAlignment(
    op: string,
    width: number,
    headDim: number,
    rotaryDim: number,
    ...tensors: (Tensor | undefined)[]
  ): void {
    invariant(headDim % 2 === 0, `${op}: headDim ${headDim} is odd`);
    const pairs = this.#pairs(headDim, rotaryDim);
    if (pairs < 4) return;
    invariant(width % pairs === 0, `${op}: rows of ${width} are not a multiple of ${pairs}`);
    for (const tensor of tensors)
      invariant((tensor?.address ?? 0) % VECTOR_BYTES === 0, `${op}: ${tensor} is not 16-byte aligned`);
  }
}
