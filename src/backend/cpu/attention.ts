import { InvariantError } from "../../base/errors.ts";
import { type AttentionSpec, projectedHeads } from "../attention-spec.ts";
import type { BatchMetadata } from "./batch.ts";
import { dot } from "./linear.ts";

/** One layer's cache, both [blocks, numKvHeads, blockSize, headDim]. */
export interface PagedKv {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly blocks: number;
  readonly blockSize: number;
}

/** The ragged batch; see `BatchTensors`. */
export interface RaggedRows extends Omit<BatchMetadata, "tokenIds"> {
  readonly blockTables: Int32Array;
  /** Row stride of `blockTables`. */
  readonly maxBlocks: number;
}

/** The part of the spec that attention itself needs, in host memory. */
export interface AttentionHeads
  extends Pick<
    AttentionSpec,
    "numHeads" | "numKvHeads" | "headDim" | "readsOnly" | "scale" | "window" | "softCap"
  > {
  readonly sinks?: Float32Array | undefined;
}

/** out[T, NQ·D]: attention of the rotated queries in `qkv` over the cache; the last part of `Backend.attend`. */
export function attention(
  out: Float32Array,
  qkv: Float32Array,
  cache: PagedKv,
  rows: RaggedRows,
  spec: AttentionHeads,
): void {
  const { numHeads, numKvHeads, headDim, scale, window } = spec;
  const width = projectedHeads(spec) * headDim;
  for (let row = 0; row < rows.contextLens.length; row++) {
    const table = blockTableOf(rows, row, cache, window);
    const [firstToken, end] = [rows.cuSeqlensQ[row]!, rows.cuSeqlensQ[row + 1]!];
    for (let token = firstToken; token < end; token++) {
      const position = rows.contextLens[row]! - (end - token);
      const first = window > 0 ? Math.max(0, position - window + 1) : 0;
      const weights = new Float64Array(position + 1 - first);
      for (let head = 0; head < numHeads; head++) {
        const kvHead = Math.floor((head * numKvHeads) / numHeads);
        const query = token * width + head * headDim;
        for (const i of weights.keys()) {
          const key = elementOf(cache, table, first + i, kvHead, numKvHeads, headDim);
          weights[i] = dot(qkv, query, cache.keys, key, headDim) * scale;
        }
        const total = softmax(weights, weights.length, spec, head);
        const sum = new Float64Array(headDim);
        for (const [i, weight] of weights.entries()) {
          const value = elementOf(cache, table, first + i, kvHead, numKvHeads, headDim);
          for (let d = 0; d < headDim; d++) sum[d]! += weight * cache.values[value + d]!;
        }
        const target = (token * numHeads + head) * headDim;
        for (let d = 0; d < headDim; d++) out[target + d] = sum[d]! / total;
      }
    }
  }
}

/** Index of the first element of a position's key or value. */
function elementOf(
  { blockSize }: PagedKv,
  table: Int32Array,
  position: number,
  kvHead: number,
  numKvHeads: number,
  headDim: number,
): number {
  const block = table[Math.floor(position / blockSize)]!;
  return ((block * numKvHeads + kvHead) * blockSize + (position % blockSize)) * headDim;
}

/** scores ← exp(scores − max), of the first `count`, capped; returns their sum, with what goes to the head's sink. */
export function softmax(
  scores: Float64Array,
  count: number,
  { softCap, sinks }: AttentionHeads,
  head: number,
): number {
  if (softCap !== undefined)
    for (let i = 0; i < count; i++) scores[i] = softCap * Math.tanh(scores[i]! / softCap);
  const sink = sinks?.[head] ?? -Infinity;
  let max = sink;
  for (let i = 0; i < count; i++) max = Math.max(max, scores[i]!);
  let total = Math.exp(sink - max);
  for (let i = 0; i < count; i++) {
    const weight = Math.exp(scores[i]! - max);
    scores[i] = weight;
    total += weight;
  }
  return total;
}

/** The first block that the query at `position` sees. */
export function firstSeenBlock(position: number, window: number, blockSize: number): number {
  return window === 0 ? 0 : Math.floor(Math.max(0, position - window + 1) / blockSize);
}

/** The block table of a row, whose blocks are known to exist from the first on that its queries see. */
export function blockTableOf(
  rows: RaggedRows,
  row: number,
  { blocks, blockSize }: Pick<PagedKv, "blocks" | "blockSize">,
  window: number,
): Int32Array {
  const contextLen = rows.contextLens[row]!;
  const queryLen = rows.cuSeqlensQ[row + 1]! - rows.cuSeqlensQ[row]!;
  if (queryLen > contextLen) refuse(`row ${row} has ${queryLen} queries, context ${contextLen}`);
  const used = Math.ceil(contextLen / blockSize);
  if (used > rows.maxBlocks) refuse(`row ${row} needs ${used} blocks, its table has ${rows.maxBlocks}`);
  const start = rows.rowSlots[row]! * rows.maxBlocks;
  const table = rows.blockTables.subarray(start, start + used);
  const first = firstSeenBlock(contextLen - queryLen, window, blockSize);
  for (let i = first; i < used; i++) {
    const block = table[i]!;
    if (!(0 <= block && block < blocks)) refuse(`row ${row} names block ${block} of ${blocks}`);
  }
  return table;
}

/** Messages are built only when there is something to say: rows are checked by every layer. */
function refuse(message: string): never {
  throw new InvariantError(`attend: ${message}`);
}
