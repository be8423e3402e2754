import type { Backend, LayerCache } from "../backend/backend.ts";
import { dtypeSize, type FloatDType } from "../base/dtype.ts";

/** What decides the size of a KV block. */
export interface KvCacheShape {
  readonly numLayers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
}

/** Bytes that one block takes over all layers. */
export function kvBlockBytes(shape: KvCacheShape, dtype: FloatDType): number {
  return 2 * shape.numLayers * shape.numKvHeads * shape.headDim * shape.blockSize * dtypeSize(dtype);
}

/** Device block that padding rows read and write. The engine's block b is device block b + 1. */
export const SCRATCH_BLOCK = 0;

/** The paged keys and values of all layers, plus the scratch block. */
export class KvCache {
  readonly layers: readonly LayerCache[];

  constructor(
    backend: Backend,
    readonly shape: KvCacheShape,
    readonly numBlocks: number,
  ) {
    const { numLayers, numKvHeads, blockSize, headDim } = shape;
    const blocks = () =>
      backend.empty(backend.activationDtype, [numBlocks + 1, numKvHeads, blockSize, headDim]);
    this.layers = Array.from({ length: numLayers }, () => ({ keys: blocks(), values: blocks() }));
  }

  dispose(): void {
    for (const { keys, values } of this.layers) {
      keys.buffer.dispose();
      values.buffer.dispose();
    }
  }
}
