import type { Backend, KvScales, LayerCache } from "../backend/backend.ts";
import { byteLengthOf, type DeviceBuffer, Tensor } from "../backend/tensor.ts";
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

/** Values begin at multiples of so many bytes from their keys: no less than what buffers begin at. */
const ALIGNMENT = 512;

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
  readonly #buffers: readonly DeviceBuffer[];

  constructor(
    backend: Backend,
    { layout, blockSize, kvDtype }: KvCacheShape,
    numBlocks: number,
    scales: readonly KvScales[] = [],
  ) {
    const blocks = numBlocks + 1;
    const columns = layout.columns.map((elements) => {
      const shape = [blocks, elements * blockSize];
      const bytes = Math.ceil(byteLengthOf(kvDtype, shape) / ALIGNMENT) * ALIGNMENT;
      // One buffer, so that no backend with several memories has them in two.
      const buffer = backend.allocate(2 * bytes, true);
      const memory = (offset: number) => new Tensor(buffer, kvDtype, shape, offset);
      return { buffer, keys: memory(0), values: memory(bytes) };
    });
    this.#buffers = columns.map(({ buffer }) => buffer);
    this.layers = layout.layers.map(({ group, column, part, numKvHeads, headDim }, layer) => {
      const parts = blocks * layout.groups[group]!.parts;
      const own = (memory: Tensor) => memory.reshape(parts, numKvHeads, blockSize, headDim).rows(part, parts);
      const { keys, values } = columns[column]!;
      return { keys: own(keys), values: own(values), group, ...scales[layer] };
    });
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.dispose();
  }
}
