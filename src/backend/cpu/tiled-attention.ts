import { projectedHeads } from "../attention-spec.ts";
import { type AttentionHeads, blockTableOf, type PagedKv, type RaggedRows, softmax } from "./attention.ts";
import { dot } from "./linear.ts";

/**
 * `attention` a run at a time, with the same results to the bit: a run is the part of one block that a query sees, whose
 * keys and values lie at consecutive addresses.
 */
export function tiledAttention(
  out: Float32Array,
  qkv: Float32Array,
  cache: PagedKv,
  rows: RaggedRows,
  spec: AttentionHeads,
): void {
  const { numHeads, numKvHeads, headDim, window } = spec;
  const { blockSize } = cache;
  const width = projectedHeads(spec) * headDim;
  const headsPerKvHead = numHeads / numKvHeads;
  const scores = new Float64Array(Math.max(0, ...rows.contextLens));
  const sum = new Float64Array(headDim);

  for (let row = 0; row < rows.contextLens.length; row++) {
    const firstToken = rows.cuSeqlensQ[row]!;
    const queryLen = rows.cuSeqlensQ[row + 1]! - firstToken;
    const contextLen = rows.contextLens[row]!;
    const table = blockTableOf(rows, row, cache, window);
    for (let t = 0; t < queryLen; t++) {
      const position = contextLen - queryLen + t;
      const first = window > 0 ? Math.max(0, position - window + 1) : 0;
      for (let head = 0; head < numHeads; head++) {
        const kvHead = Math.floor(head / headsPerKvHead);
        const query = (firstToken + t) * width + head * headDim;
        for (let p = first; p <= position; ) {
          const run = Math.min(blockSize - (p % blockSize), position + 1 - p);
          const start = runStart(table, p, kvHead);
          scoreRun(scores, p - first, run, qkv, query, cache.keys, start, headDim, spec.scale);
          p += run;
        }
        const total = softmax(scores, position + 1 - first, spec, head);
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
