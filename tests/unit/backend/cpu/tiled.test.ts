import { expect, setDefaultTimeout, test } from "bun:test";
import { CpuBackend, PLAIN_LOOPS } from "../../../../src/backend/cpu/cpu-backend.ts";
import { denseWeight } from "../../../../src/backend/weight.ts";
import { Fixture } from "../../../contract/fixture.ts";
import { batchTensors, type RowShape, raggedBatch } from "../../../contract/ragged-batch.ts";

setDefaultTimeout(300_000);

/** The bytes of what `run` computes with the loops as their definitions read, and with the fast ones. */
function both(run: (fixture: Fixture) => Uint8Array): [plain: Uint8Array, tiled: Uint8Array] {
  const results = [new CpuBackend(PLAIN_LOOPS), new CpuBackend()].map((backend) => {
    const result = run(new Fixture(backend));
    backend.dispose();
    return result;
  });
  return results as [Uint8Array, Uint8Array];
}

test.each([
  [1, 1, 1],
  [1, 4, 7],
  [2, 3, 5],
  [3, 9, 130],
  [4, 8, 64],
  [17, 30, 33],
])("products of %d tokens, %d outputs and %d inputs are the same to the bit", (m, n, k) => {
  const [plain, tiled] = both((fixture) => {
    const [x, weight] = [fixture.normals([m, k]), fixture.normals([n, k])];
    const out = fixture.output("float32", [m, n]);
    fixture.backend.linear(out, x.tensor, denseWeight(weight.tensor));
    return fixture.backend.download(out);
  });
  expect(tiled).toEqual(plain);
});

test.each<[RowShape[], number, number]>([
  [[[1, 1]], 16, 0],
  [
    [
      [70, 1],
      [16, 1],
      [33, 1],
    ],
    16,
    0,
  ],
  [
    [
      [5, 1],
      [45, 9],
      [18, 18],
    ],
    4,
    0,
  ],
  [
    [
      [90, 1],
      [64, 30],
      [7, 7],
    ],
    16,
    5,
  ],
  [
    [
      [50, 1],
      [64, 64],
    ],
    64,
    40,
  ],
])("attention of rows %j in blocks of %d, window %d, is the same to the bit", (rows, blockSize, window) => {
  const [numHeads, numKvHeads, headDim] = [6, 2, 20];
  const [plain, tiled] = both((fixture) => {
    const batch = raggedBatch(fixture, rows, blockSize);
    const cached = () => fixture.normals([batch.numBlocks, numKvHeads, blockSize, headDim]).tensor;
    const qkv = fixture.normals([batch.numTokens, (numHeads + 2 * numKvHeads) * headDim]).tensor;
    const out = fixture.output("float32", [batch.numTokens, numHeads * headDim]);
    const cosSin = fixture.normals([100, headDim]).tensor;
    fixture.backend.attend(out, qkv, { keys: cached(), values: cached() }, batchTensors(fixture, batch), {
      ...{ numHeads, numKvHeads, headDim, cosSin, scale: 0.3, window },
    });
    return fixture.backend.download(out);
  });
  expect(tiled).toEqual(plain);
});
