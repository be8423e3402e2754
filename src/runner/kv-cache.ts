import type { Backend, KvScales, LayerCache } from "../backend/backend.ts";
import type { Tensor } from "../backend/tensor.ts";
import { dtypeSize, type KvDType } from "../base/dtype.ts";
import type { KvLayout } from "./kv-layout.ts";

/** The extents and the dtype of KV blocks. */
export interface KvCacheShape {
  readonly layout: KvLayout;
  readonly blockSize: number;
  readonly kvDtype: KvDType;
}

/** Bytes of a block: keys and values of `blockSize` tokens in all columns. */
export function kvBlockBytes({ layout, blockSize, kvDtype }: KvCacheShape): number {
  const elements = layout.columns.reduce((sum, column) => sum + 2 * column, 0);
  return elements * blockSize * dtypeSize(kvDtype);
}

/** Device block that padding rows read and write. */
export const SCRATCH_BLOCK = 0;

/**
 * The entry of a block table on the device, which has the scratch block besides.
 * @param parts see `LayoutGroup`
 */
export function deviceBlock(block: number, parts = 1): number {
  return (block + SCRATCH_BLOCK + 1) * parts;
}

/** The paged keys and values of all layers, plus the scratch block. `scales`, if any, are of the layers. */
export class KvCache {
  readonly layers: readonly LayerCache[];
  readonly #columns: readonly Tensor[];

  constructor(
    backend: Backend,
    { layout, blockSize, kvDtype }: KvCacheShape,
    numBlocks: number,
    scales: readonly KvScales[] = [],
  ) {
    const blocks = numBlocks + 1;
    const columns = layout.columns.map((elements) => {
      const memory = () => backend.empty(kvDtype, [blocks, elements * blockSize]);
      return { keys: memory(), values: memory() };
    });
    this.#columns = columns.flatMap(({ keys, values }) => [keys, values]);
    this.layers = layout.layers.map(({ group, column, part, numKvHeads, headDim }, layer) => {
      const parts = blocks * layout.groups[group]!.parts;
      const own = (memory: Tensor) => memory.reshape(parts, numKvHeads, blockSize, headDim).rows(part, parts);
      const { keys, values } = columns[column]!;
      return { keys: own(keys), values: own(values), group, ...scales[layer] };
    });
  }

  dispose(): void {
    for (const { buffer } of this.#columns) buffer.dispose();
  }
}
