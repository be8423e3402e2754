import type { LayerCache, RopeStoreSpec } from "../../../src/backend/backend.ts";
import type { Case } from "../backend.contract.ts";
import { expectClose } from "../compare.ts";
import type { Fixture, Uploaded } from "../fixture.ts";
import { batchTensors, type RaggedBatch, type RowShape, raggedBatch } from "../ragged-batch.ts";
import * as reference from "../reference.ts";

const EPS = 1e-6;

/** cosSin[positions, rotaryDim] with base 10,000. */
function angles(fixture: Fixture, positions: number, rotaryDim: number): Uploaded {
  const half = rotaryDim / 2;
  const values = Float32Array.from({ length: positions * rotaryDim }, (_, index) => {
    const i = index % rotaryDim;
    const angle = Math.floor(index / rotaryDim) * 10000 ** (-(i % half) / half);
    return i < half ? Math.cos(angle) : Math.sin(angle);
  });
  return fixture.input(values, [positions, rotaryDim], "float32");
}

export function rotaryCases(addCase: Case): void {
  for (const [tokens, heads, extraHeads, headDim, rotaryDim] of [
    [1, 4, 0, 64, 64],
    [3, 5, 3, 128, 128],
    [17, 2, 2, 96, 32],
    [130, 1, 1, 256, 256],
    [3, 2, 1, 80, 20],
  ] as const) {
    const width = (heads + extraHeads) * headDim;
    addCase("rotary", `${tokens} × ${heads} heads of ${headDim}, ${rotaryDim} rotated`, (fixture) => {
      const x = fixture.state(fixture.random.normals(tokens * width), [tokens, width]);
      const cosSin = angles(fixture, 200, rotaryDim);
      const positions = Array.from({ length: tokens }, (_, t) => (t === 0 ? 199 : fixture.random.int(200)));
      fixture.backend.rotary(x.tensor, heads, headDim, cosSin.tensor, fixture.ints(positions));
      const expected = reference.rotary(x.values, width, heads, headDim, cosSin.values, rotaryDim, positions);
      const precision = { dtype: fixture.dtype, reduction: 2 };
      expectClose("x", fixture.readFloats(x.tensor), expected, precision);
    });
  }
  ropeAndStoreCases(addCase);
}

const BATCHES: readonly (readonly RowShape[])[] = [
  [[1, 1]],
  [
    [16, 1],
    [17, 1],
    [40, 1],
  ],
  [
    [5, 1],
    [33, 16],
  ],
  [
    [9, 1],
    [90, 75],
    [54, 54],
  ],
];

function ropeAndStoreCases(addCase: Case): void {
  const heads = [
    [4, 2, 64],
    [8, 8, 128],
    [8, 1, 96],
    [7, 1, 256],
  ] as const;
  for (const [i, [numHeads, numKvHeads, headDim]] of heads.entries()) {
    for (const [j, rows] of BATCHES.entries()) {
      const blockSize = (i + j) % 2 === 0 ? 16 : 64;
      const withNorm = j !== 1;
      const rotaryDim = j === 2 ? headDim / 2 : headDim;
      const title = `${numHeads}/${numKvHeads} heads of ${headDim}, rows ${JSON.stringify(rows)}, blocks of ${blockSize}${withNorm ? ", norms" : ""}`;
      addCase("ropeAndStoreKv", title, (fixture) => {
        const batch = raggedBatch(fixture, rows, blockSize);
        const width = (numHeads + 2 * numKvHeads) * headDim;
        const qkv = fixture.state(fixture.random.normals(batch.numTokens * width), [batch.numTokens, width]);
        const cacheShape = [batch.numBlocks, numKvHeads, blockSize, headDim];
        const cache: LayerCache = {
          keys: fixture.output(fixture.dtype, cacheShape),
          values: fixture.output(fixture.dtype, cacheShape),
        };
        const cosSin = angles(fixture, 100, rotaryDim);
        const queryNorm = fixture.normals([headDim], 0.3, 1);
        const keyNorm = fixture.normals([headDim], 0.3, 1);
        const spec: RopeStoreSpec = {
          numHeads,
          numKvHeads,
          headDim,
          cosSin: cosSin.tensor,
          ...(withNorm ? { queryNorm: queryNorm.tensor, keyNorm: keyNorm.tensor } : {}),
          eps: EPS,
        };
        fixture.backend.ropeAndStoreKv(qkv.tensor, cache, batchTensors(fixture, batch), spec);

        const rotatedHeads = numHeads + numKvHeads;
        const normed = qkv.values.slice();
        for (let head = 0; withNorm && head < batch.numTokens * (numHeads + 2 * numKvHeads); head++) {
          const kind = head % (numHeads + 2 * numKvHeads);
          if (kind >= rotatedHeads) continue;
          const weight = kind < numHeads ? queryNorm.values : keyNorm.values;
          const span = normed.subarray(head * headDim, (head + 1) * headDim);
          span.set(reference.rmsNorm(span, weight, EPS).values);
        }
        const expected = reference.rotary(
          normed,
          width,
          rotatedHeads,
          headDim,
          cosSin.values,
          rotaryDim,
          batch.positions,
        );
        const precision = { dtype: fixture.dtype, reduction: headDim, intermediates: withNorm ? 2 : 0 };
        const [keyStart, keyEnd] = [numHeads * headDim, rotatedHeads * headDim];
        const isKey = (i: number) => i % width >= keyStart && i % width < keyEnd;
        const actual = fixture.readFloats(qkv.tensor).filter((_, i) => !isKey(i));
        const withoutKeys = {
          values: expected.values.filter((_, i) => !isKey(i)),
          magnitudes: expected.magnitudes.filter((_, i) => !isKey(i)),
        };
        expectClose("queries and values", actual, withoutKeys, precision);
        for (const [name, firstHead] of [
          ["keys", numHeads],
          ["values", rotatedHeads],
        ] as const) {
          const stored = { batch, numKvHeads, headDim, width, offset: firstHead * headDim };
          const inCache = cachedTokens(expected, stored);
          expectClose(name, fixture.readFloats(cache[name]), inCache, precision);
        }
      });
    }
  }
}

/** The cache that the tokens' heads at column `offset` of `source` leave behind: NaN where nothing is stored. */
function cachedTokens(
  source: { values: Float64Array; magnitudes: Float64Array },
  stored: { batch: RaggedBatch; numKvHeads: number; headDim: number; width: number; offset: number },
) {
  const { batch, numKvHeads, headDim, width, offset } = stored;
  const size = batch.numBlocks * numKvHeads * batch.blockSize * headDim;
  const values = new Float64Array(size).fill(Number.NaN);
  const magnitudes = new Float64Array(size);
  for (const [t, slot] of batch.slotMapping.entries()) {
    const block = Math.floor(slot / batch.blockSize);
    for (let head = 0; head < numKvHeads; head++) {
      const to = ((block * numKvHeads + head) * batch.blockSize + (slot % batch.blockSize)) * headDim;
      const from = t * width + offset + head * headDim;
      values.set(source.values.subarray(from, from + headDim), to);
      magnitudes.set(source.magnitudes.subarray(from, from + headDim), to);
    }
  }
  return { values, magnitudes };
}
