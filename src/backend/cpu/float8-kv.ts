import { FLOAT8_VALUES, toFloat8 } from "../../base/float8.ts";
import { blockTableOf, firstSeenBlock, type PagedKv, type RaggedRows } from "./attention.ts";

/** One layer's cache in eight bits, both [blocks, numKvHeads, blockSize, headDim]; see `LayerCache`. */
export interface Float8Kv {
  readonly keys: Uint8Array;
  readonly values: Uint8Array;
  readonly keyScale: number;
  readonly valueScale: number;
  readonly blocks: number;
  readonly blockSize: number;
}

/** target[at …] = x / scale, as codes. */
export function storeFloat8(target: Uint8Array, at: number, x: Float32Array, scale: number): void {
  for (let i = 0; i < x.length; i++) target[at + i] = toFloat8(x[i]! / scale);
}

/**
 * The blocks that the rows attend to, each row's in its order, as what they stand for; and the rows with tables that name
 * them. A block that several rows share is there for each of them.
 * @param blockElements numKvHeads · blockSize · headDim
 * @param window see `AttentionSpec.window`
 */
export function widenContexts(
  cache: Float8Kv,
  rows: RaggedRows,
  blockElements: number,
  window: number,
): { readonly cache: PagedKv; readonly rows: RaggedRows } {
  const tables = Array.from(rows.contextLens, (_, row) => blockTableOf(rows, row, cache, window));
  const blocks = tables.reduce((total, table) => total + table.length, 0);
  const maxBlocks = Math.max(1, ...tables.map((table) => table.length));
  const blockTables = new Int32Array(tables.length * maxBlocks);
  const [keys, values] = [new Float32Array(blocks * blockElements), new Float32Array(blocks * blockElements)];
  let next = 0;
  for (const [row, table] of tables.entries()) {
    const queries = rows.cuSeqlensQ[row + 1]! - rows.cuSeqlensQ[row]!;
    const first = firstSeenBlock(rows.contextLens[row]! - queries, window, cache.blockSize);
    for (const [i, block] of table.entries()) {
      if (i < first) continue;
      blockTables[row * maxBlocks + i] = next;
      widen(keys, next * blockElements, cache.keys, block * blockElements, blockElements, cache.keyScale);
      widen(
        values,
        next * blockElements,
        cache.values,
        block * blockElements,
        blockElements,
        cache.valueScale,
      );
      next++;
    }
  }
  return {
    cache: { keys, values, blocks, blockSize: cache.blockSize },
    rows: { ...rows, blockTables, maxBlocks, rowSlots: Int32Array.from(tables.keys()) },
  };
}

function widen(
  target: Float32Array,
  at: number,
  source: Uint8Array,
  from: number,
  count: number,
  scale: number,
): void {
  for (let i = 0; i < count; i++) target[at + i] = FLOAT8_VALUES[source[from + i]!]! * scale;
}
