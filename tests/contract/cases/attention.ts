import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import { batchTensors, type RaggedBatch, type RowShape, raggedBatch } from "../ragged-batch.ts";
import * as reference from "../reference.ts";

interface Shape {
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly blockSize: number;
  readonly window: number;
}

const BATCHES: Readonly<Record<string, readonly RowShape[]>> = {
  "one decode": [[1, 1]],
  "long decodes": [
    [17, 1],
    [64, 1],
    [1000, 1],
  ],
  "one prefill": [[17, 17]],
  "chunk with cached prefix": [
    [300, 13],
    [129, 4],
  ],
  mixed: [
    [5, 1],
    [130, 1],
    [33, 1],
    [74, 74],
    [90, 53],
  ],
};
const HEADS = [
  [4, 2],
  [8, 8],
  [8, 1],
  [7, 1],
] as const;

export function attentionCases(addCase: Case): void {
  const names = Object.keys(BATCHES);
  for (const name of names) {
    for (const blockSize of [16, 64]) {
      for (const window of [0, 5, 100]) {
        const shape = { numHeads: 4, numKvHeads: 2, headDim: 64, blockSize, window };
        attentionCase(addCase, name, shape);
      }
    }
  }
  let turn = 0;
  for (const headDim of [64, 96, 128, 256]) {
    for (const [numHeads, numKvHeads] of HEADS) {
      for (const name of ["long decodes", headDim === 96 ? "mixed" : "chunk with cached prefix"]) {
        const blockSize = turn % 2 === 0 ? 16 : 64;
        const window = [0, 100, 0, 5][turn++ % 4]!;
        attentionCase(addCase, name, { numHeads, numKvHeads, headDim, blockSize, window });
      }
    }
  }
}

function attentionCase(addCase: Case, name: string, shape: Shape): void {
  const { numHeads, numKvHeads, headDim, blockSize, window } = shape;
  const title = `${name}, ${numHeads}/${numKvHeads} heads of ${headDim}, blocks of ${blockSize}, window ${window}`;
  addCase("attention", title, (fixture) => {
    const batch = raggedBatch(fixture, BATCHES[name]!, blockSize);
    const width = (numHeads + 2 * numKvHeads) * headDim;
    const qkv = fixture.normals([batch.numTokens, width]);
    const keys = pagedValues(fixture, batch, numKvHeads * headDim, 1);
    const values = pagedValues(fixture, batch, numKvHeads * headDim, 1);
    const cache = {
      keys: upload(fixture, batch, keys, numKvHeads, headDim),
      values: upload(fixture, batch, values, numKvHeads, headDim),
    };
    const rows = batch.rows.map(([contextLen, queryLen], i) => ({
      firstToken: batch.cuSeqlensQ[i]!,
      queryLen,
      contextLen,
      keys: cache.keys.rows[i]!,
      values: cache.values.rows[i]!,
    }));
    const spec = { numHeads, numKvHeads, headDim, scale: 1 / Math.sqrt(headDim), window };
    const out = fixture.output(fixture.dtype, [batch.numTokens, numHeads * headDim]);
    const tensors = { keys: cache.keys.tensor, values: cache.values.tensor };
    fixture.backend.attention(out, qkv.tensor, tensors, batchTensors(fixture, batch), spec);
    const expected = reference.attention(qkv.values, batch.numTokens, rows, spec);
    const longest = Math.max(...batch.rows.map(([contextLen]) => contextLen));
    const precision = { dtype: fixture.dtype, reduction: headDim + longest, intermediates: 2 };
    expectClose("out", fixture.readFloats(out), expected, precision);
  });
}

/** Each row's cached keys or values, [contextLen, rowWidth]. */
function pagedValues(fixture: Fixture, batch: RaggedBatch, rowWidth: number, scale: number): Float32Array[] {
  return batch.rows.map(([contextLen]) => fixture.random.normals(contextLen * rowWidth, scale));
}

/** A cache that holds `rows`, NaN everywhere else; and the rows as rounded to the cache's dtype. */
function upload(
  fixture: Fixture,
  { rowSlots, blockTables, maxBlocks, numBlocks, blockSize }: RaggedBatch,
  rows: readonly Float32Array[],
  numKvHeads: number,
  headDim: number,
) {
  const paged = new Float32Array(numBlocks * numKvHeads * blockSize * headDim).fill(Number.NaN);
  const copy = (toRows: boolean, source: Float32Array) => {
    for (const [i, row] of rows.entries()) {
      for (let p = 0; p * numKvHeads * headDim < row.length; p++) {
        const block = blockTables[rowSlots[i]! * maxBlocks + Math.floor(p / blockSize)]!;
        for (let head = 0; head < numKvHeads; head++) {
          const at = ((block * numKvHeads + head) * blockSize + (p % blockSize)) * headDim;
          const inRow = (p * numKvHeads + head) * headDim;
          if (toRows) row.set(source.subarray(at, at + headDim), inRow);
          else paged.set(row.subarray(inRow, inRow + headDim), at);
        }
      }
    }
  };
  copy(false, paged);
  const uploaded = fixture.input(paged, [numBlocks, numKvHeads, blockSize, headDim]);
  copy(true, uploaded.values);
  return { tensor: uploaded.tensor, rows };
}
