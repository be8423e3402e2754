import { describe, expect, test } from "bun:test";
import { CudaBackend } from "../../src/backend/cuda/cuda-backend.ts";
import type { FloatDType } from "../../src/base/dtype.ts";
import type { Cuda } from "../../src/cuda/open-cuda.ts";
import { AttentionStep } from "./attention-step.ts";
import { expectEqual } from "./compare.ts";
import { Fixture } from "./fixture.ts";
import { batchTensors, type RowShape, raggedBatch } from "./ragged-batch.ts";

const SHAPE = {
  ...{ numHeads: 8, numKvHeads: 2, headDim: 64, rotaryDim: 64, blockSize: 16, window: 0, headNorm: true },
};
const LENGTHS = [1, 16, 17, 300, 257, 1000, 5000];

/** What decode rows of the CUDA backend promise beyond the contract. */
export function decodeRowCases(cuda: Cuda, dtype: FloatDType): void {
  describe("decode rows", () => {
    const withBackend = (batchInvariant: boolean, run: (fixture: Fixture) => void) => {
      const backend = new CudaBackend(cuda, dtype, { batchInvariant });
      const fixture = new Fixture(backend);
      try {
        run(fixture);
        fixture.checkUntouched();
      } finally {
        fixture.dispose();
        backend.dispose();
      }
    };

    for (const window of [0, 200]) {
      test(`do not depend on each other with batchInvariant, window ${window}`, () => {
        withBackend(true, (fixture) => {
          const others = Array.from({ length: 200 }, (_, i): RowShape => [1 + ((i * 131) % 900), 1]);
          const rows = LENGTHS.map((length): RowShape => [length, 1]);
          const batch = raggedBatch(fixture, [...others.slice(0, 100), ...rows, ...others.slice(100)], 16);
          const step = new AttentionStep(fixture, batch, { ...SHAPE, window });
          const tensors = batchTensors(fixture, batch);
          fixture.backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec);
          const together = step.out.rows(100, 100 + rows.length);
          const expected = fixture.readFloats(together);
          for (const [i] of rows.entries()) {
            const row = 100 + i;
            const only = {
              ...tensors,
              ...{ numTokens: 1, numRows: 1, decodeRows: 1 },
              positions: tensors.positions.rows(row, row + 1),
              slotMapping: tensors.slotMapping.rows(row, row + 1),
              cuSeqlensQ: fixture.ints([0, 1]),
              contextLens: tensors.contextLens.rows(row, row + 1),
              rowSlots: tensors.rowSlots.rows(row, row + 1),
            };
            const out = fixture.output(dtype, [1, step.out.dim(1)]);
            fixture.backend.attend(out, step.qkv.tensor.rows(row, row + 1), step.cache, only, step.spec);
            const width = step.out.dim(1);
            expectEqual(`row ${i}`, fixture.readFloats(out), expected.subarray(i * width, (i + 1) * width));
          }
          step.check();
        });
      });
    }

    test("of slot −1, context 0 or slot mapping −1 store nothing, and their neighbours are right", () => {
      withBackend(false, (fixture) => {
        const batch = raggedBatch(
          fixture,
          LENGTHS.map((length): RowShape => [length, 1]),
          16,
        );
        const step = new AttentionStep(fixture, batch, SHAPE);
        const tensors = batchTensors(fixture, batch);
        const without = (values: readonly number[], index: number, value: number) =>
          fixture.ints(values.map((each, i) => (i === index ? value : each)));
        const before = [fixture.readFloats(step.cache.keys), fixture.readFloats(step.cache.values)];
        const run = (changed: Partial<typeof tensors>) => {
          const out = fixture.output(dtype, [...step.out.shape]);
          const qkv = fixture.state(step.qkv.values, [...step.qkv.tensor.shape]);
          fixture.backend.attend(out, qkv.tensor, step.cache, { ...tensors, ...changed }, step.spec);
          return fixture.readFloats(out);
        };
        const none = fixture.ints(LENGTHS.map(() => -1));
        const unstored = run({ slotMapping: none });
        expectEqual("keys", fixture.readFloats(step.cache.keys), before[0]!);
        expectEqual("values", fixture.readFloats(step.cache.values), before[1]!);
        const vacant = run({ rowSlots: without(batch.rowSlots, 3, -1) });
        const empty = run({ contextLens: without(LENGTHS, 5, 0) });
        fixture.backend.attend(step.out, step.qkv.tensor, step.cache, tensors, step.spec);
        step.check();
        const all = fixture.readFloats(step.out);
        const width = step.out.dim(1);
        // A row's own token is attended to without being stored.
        expectEqual("unstored", unstored, all);
        for (const [i] of LENGTHS.entries()) {
          const of = (values: Float32Array) => values.subarray(i * width, (i + 1) * width);
          if (i === 3) expect(of(vacant).every(Number.isNaN)).toBe(true);
          else expectClose(of(vacant), of(all));
          if (i === 5) expect(of(empty).every(Number.isNaN)).toBe(true);
          else expectClose(of(empty), of(all));
        }
      });
    });
  });
}

/** Rows that other rows' absence may have cut otherwise. */
function expectClose(actual: Float32Array, expected: Float32Array): void {
  for (const [i, value] of actual.entries()) expect(Math.abs(value - expected[i]!)).toBeLessThan(0.02);
}
