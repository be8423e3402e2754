import { invariant } from "../../base/errors.ts";
import type { AttentionSpec } from "../backend.ts";
import { dot } from "./linear.ts";

/** One layer's cache, both [blocks, numKvHeads, blockSize, headDim]. */
export interface PagedKv {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  readonly blocks: number;
  readonly blockSize: number;
}

/** The ragged batch; see `BatchTensors`. */
export interface RaggedRows {
  readonly cuSeqlensQ: Int32Array;
  readonly contextLens: Int32Array;
  readonly rowSlots: Int32Array;
  readonly blockTables: Int32Array;
  /** Row stride of `blockTables`. */
  readonly maxBlocks: number;
}

/** See `Backend.attention`. Softmax takes two passes over the scores of one query head. */
export function attention(
  out: Float32Array,
  qkv: Float32Array,
  cache: PagedKv,
  rows: RaggedRows,
  spec: AttentionSpec,
): void {
  const { numHeads, numKvHeads, headDim, window } = spec;
  const { blockSize, blocks } = cache;
  const width = (numHeads + 2 * numKvHeads) * headDim;
  const headsPerKvHead = numHeads / numKvHeads;
  const scores = new Float64Array(Math.max(0, ...rows.contextLens));
  const sum = new Float64Array(headDim);

  for (let row = 0; row < rows.contextLens.length; row++) {
    const firstToken = rows.cuSeqlensQ[row]!;
    const queryLen = rows.cuSeqlensQ[row + 1]! - firstToken;
    const contextLen = rows.contextLens[row]!;
    const table = rows.blockTables.subarray(rows.rowSlots[row]! * rows.maxBlocks).subarray(0, rows.maxBlocks);
    checkRow(row, queryLen, contextLen, table, cache);

    for (let t = 0; t < queryLen; t++) {
      const position = contextLen - queryLen + t;
      const first = window > 0 ? Math.max(0, position - window + 1) : 0;
      for (let head = 0; head < numHeads; head++) {
        const kvHead = Math.floor(head / headsPerKvHead);
        const query = (firstToken + t) * width + head * headDim;
        // A run is the part of one block that the query sees: tokens at consecutive addresses.
        for (let p = first; p <= position; ) {
          const run = Math.min(blockSize - (p % blockSize), position + 1 - p);
          const start = runStart(table, p, kvHead);
          scoreRun(scores, p - first, run, qkv, query, cache.keys, start, headDim, spec.scale);
          p += run;
        }
        const total = exponentiate(scores, position + 1 - first);
        sum.fill(0);
        for (let p = first; p <= position; ) {
          const run = Math.min(blockSize - (p % blockSize), position + 1 - p);
          addRun(sum, scores, p - first, run, cache.values, runStart(table, p, kvHead));
          p += run;
        }
        const target = ((firstToken + t) * numHeads + head) * headDim;
        for (let i = 0; i < headDim; i++) out[target + i] = sum[i]! / total;
      }
    }
  }

  /** Index of the first element of position `p`. */
  function runStart(table: Int32Array, p: number, kvHead: number): number {
    const block = table[Math.floor(p / blockSize)]!;
    return ((block * numKvHeads + kvHead) * blockSize + (p % blockSize)) * headDim;
  }

  function checkRow(
    row: number,
    queryLen: number,
    contextLen: number,
    table: Int32Array,
    { blockSize }: PagedKv,
  ) {
    invariant(queryLen <= contextLen, `attention: row ${row} has ${queryLen} queries, context ${contextLen}`);
    const used = Math.ceil(contextLen / blockSize);
    invariant(
      used <= table.length,
      `attention: row ${row} needs ${used} blocks, its table has ${table.length}`,
    );
    for (let i = 0; i < used; i++) {
      const block = table[i]!;
      invariant(0 <= block && block < blocks, `attention: row ${row} names block ${block} of ${blocks}`);
    }
  }
}

/** scores[at + j] = query · keys[j] · scale for `run` keys from `start`, four independent sums at a time. */
function scoreRun(
  scores: Float64Array,
  at: number,
  run: number,
  qkv: Float32Array,
  query: number,
  keys: Float32Array,
  start: number,
  headDim: number,
  scale: number,
): void {
  const tiled = run - (run % 4);
  for (let j = 0; j < tiled; j += 4) {
    const k0 = start + j * headDim;
    const k1 = k0 + headDim;
    const k2 = k1 + headDim;
    const k3 = k2 + headDim;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let i = 0; i < headDim; i++) {
      const q = qkv[query + i]!;
      s0 += q * keys[k0 + i]!;
      s1 += q * keys[k1 + i]!;
      s2 += q * keys[k2 + i]!;
      s3 += q * keys[k3 + i]!;
    }
    scores[at + j] = s0 * scale;
    scores[at + j + 1] = s1 * scale;
    scores[at + j + 2] = s2 * scale;
    scores[at + j + 3] = s3 * scale;
  }
  for (let j = tiled; j < run; j++) {
    scores[at + j] = dot(qkv, query, keys, start + j * headDim, headDim) * scale;
  }
}

/** scores ← exp(scores − max), of the first `count`; returns their sum. */
function exponentiate(scores: Float64Array, count: number): number {
  let max = -Infinity;
  for (let i = 0; i < count; i++) max = Math.max(max, scores[i]!);
  let total = 0;
  for (let i = 0; i < count; i++) {
    const weight = Math.exp(scores[i]! - max);
    scores[i] = weight;
    total += weight;
  }
  return total;
}

/** sum += weights[at + j] · values[j] for `run` values from `start`. */
function addRun(
  sum: Float64Array,
  weights: Float64Array,
  at: number,
  run: number,
  values: Float32Array,
  start: number,
): void {
  const headDim = sum.length;
  for (let j = 0; j < run; j++) {
    const weight = weights[at + j]!;
    const value = start + j * headDim;
    for (let i = 0; i < headDim; i++) sum[i]! += weight * values[value + i]!;
  }
}
