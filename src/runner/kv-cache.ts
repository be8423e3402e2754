import type { KvHeads } from "../backend/attention-spec.ts";
import type { Backend, KvScales, LayerCache } from "../backend/backend.ts";
import { dtypeSize, type KvDType } from "../base/dtype.ts";

/** The extents and the dtype of KV blocks. A block is of so many tokens in all layers. */
export interface KvCacheShape {
  /** Of each layer that has a cache. */
  readonly layers: readonly KvHeads[];
  readonly blockSize: number;
  readonly kvDtype: KvDType;
}

/** Bytes that one block takes over all layers. */
export function kvBlockBytes({ layers, blockSize, kvDtype }: KvCacheShape): number {
  const elements = layers.reduce((sum, { numKvHeads, headDim }) => sum + 2 * numKvHeads * headDim, 0);
  return elements * blockSize * dtypeSize(kvDtype);
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
    { layers, blockSize, kvDtype }: KvCacheShape,
    numBlocks: number,
    scales: readonly KvScales[] = [],
  ) {
    const blocks = ({ numKvHeads, headDim }: KvHeads) =>
      backend.empty(kvDtype, [numBlocks + 1, numKvHeads, blockSize, headDim]);
    this.layers = layers.map((heads, layer) => ({
      ...{ keys: blocks(heads), values: blocks(heads) },
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
