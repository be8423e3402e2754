import type { Backend, KvScales, LayerCache } from "../backend/backend.ts";
import { dtypeSize, type KvDType } from "../base/dtype.ts";

/** The extents and the dtype of KV blocks. */
export interface KvCacheShape {
  readonly numLayers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  readonly kvDtype: KvDType;
}

/** Bytes that one block takes over all layers. */
export function kvBlockBytes({ numLayers, numKvHeads, headDim, blockSize, kvDtype }: KvCacheShape): number {
  return 2 * numLayers * numKvHeads * headDim * blockSize * dtypeSize(kvDtype);
}

/** Device block that padding rows read and write. */
export const SCRATCH_BLOCK = 0;

/** The engine's block on the device, which has the scratch block besides. */
export function deviceBlock(block: number): number {
  return block + SCRATCH_BLOCK + 1;
}

/** The paged keys and values of all layers, plus the scratch block. `scales`, if any, are of the layers. */
export class KvCache {
  readonly layers: readonly LayerCache[];

  constructor(
    backend: Backend,
    { numLayers, numKvHeads, blockSize, headDim, kvDtype }: KvCacheShape,
    numBlocks: number,
    scales: readonly KvScales[] = [],
  ) {
    const blocks = () => backend.empty(kvDtype, [numBlocks + 1, numKvHeads, blockSize, headDim]);
    this.layers = Array.from({ length: numLayers }, (_, layer) => ({
      ...{ keys: blocks(), values: blocks() },
      ...scales[layer],
    }));
  }

  dispose(): void {
    for (const { keys, values } of this.layers) {
      keys.buffer.dispose();
      values.buffer.dispose();
    }
  }
}
