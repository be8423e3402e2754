import type { BatchTensors, SlotTensors } from "../../../src/backend/backend.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";
import { extentsOf, type RowShape, raggedBatch } from "../ragged-batch.ts";
import { countsOf, slotTensors } from "../slot-table.ts";

const BATCHES: readonly (readonly RowShape[])[] = [
  [[1, 1]],
  [
    [20, 1],
    [1, 1],
    [64, 1],
  ],
  [
    [17, 1],
    [100, 100],
    [65, 29],
  ],
];

export function batchCases(addCase: Case): void {
  for (const rows of BATCHES) {
    for (const blockSize of [16, 64]) {
      addCase("prepareBatch", `rows ${JSON.stringify(rows)}, blocks of ${blockSize}`, (fixture) => {
        const batch = raggedBatch(fixture, rows, blockSize);
        const capacity = batch.maxBlocks * blockSize - 3;
        const tokens = Int32Array.from({ length: batch.numSlots * capacity }, () =>
          fixture.random.int(1 << 20),
        );
        const slots: SlotTensors = {
          ...slotTensors(fixture, Array(batch.numSlots).fill({}), { vocab: 1 }),
          tokens: fixture.ints(tokens, [batch.numSlots, capacity]),
          blockTables: fixture.ints(batch.blockTables, [batch.numSlots, batch.maxBlocks]),
        };
        const output = (size: number) => fixture.output("int32", [size]);
        const tensors: BatchTensors = {
          ...extentsOf(batch),
          tokenIds: output(batch.numTokens),
          positions: output(batch.numTokens),
          slotMapping: output(batch.numTokens),
          cuSeqlensQ: output(rows.length + 1),
          contextLens: output(rows.length),
          rowSlots: output(rows.length),
          blockTables: slots.blockTables,
        };
        const words = rows.flatMap(([contextLen, queryLen], i) => [
          batch.rowSlots[i]!,
          contextLen - queryLen,
          queryLen,
        ]);
        fixture.backend.prepareBatch(tensors, fixture.ints(words, [rows.length, 3]), slots);

        const tokenIds = rows.flatMap(([contextLen, queryLen], i) => {
          const start = batch.rowSlots[i]! * capacity;
          return [...tokens.subarray(start + contextLen - queryLen, start + contextLen)];
        });
        expectEqual("tokenIds", fixture.readInts(tensors.tokenIds), tokenIds);
        expectEqual("positions", fixture.readInts(tensors.positions), batch.positions);
        expectEqual("slotMapping", fixture.readInts(tensors.slotMapping), batch.slotMapping);
        expectEqual("cuSeqlensQ", fixture.readInts(tensors.cuSeqlensQ), batch.cuSeqlensQ);
        const contextLens = rows.map(([contextLen]) => contextLen);
        expectEqual("contextLens", fixture.readInts(tensors.contextLens), contextLens);
        expectEqual("rowSlots", fixture.readInts(tensors.rowSlots), batch.rowSlots);
      });
    }
  }

  for (const count of [1, 17, 1000]) {
    addCase("scatter", `${count} words, NaN patterns kept`, (fixture) => {
      const size = 1500;
      const initial = Uint32Array.from({ length: size }, (_, i) => i);
      const target = fixture.stateOf("uint32", initial, [30, size / 30]);
      const indices = fixture.random.permutation(size).slice(0, count);
      const values = Uint32Array.from(indices, (_, i) => (0xff800001 + i * 77) >>> 0);
      fixture.backend.scatter(target, fixture.ints(indices), fixture.stateOf("uint32", values, [count]));
      for (const [i, index] of indices.entries()) initial[index] = values[i]!;
      expectEqual("target", fixture.readWords(target), initial);
    });
  }

  for (const vocab of [1, 7, 4096]) {
    addCase("countTokens", `vocabulary of ${vocab}: counts two slots anew, leaves the third`, (fixture) => {
      const draw = (length: number) => Array.from({ length }, () => fixture.random.int(vocab));
      const histories = [draw(64), draw(40), draw(1)];
      const slots = slotTensors(
        fixture,
        histories.map((tokens) => ({ tokens })),
        { vocab },
      );
      const rows = fixture.ints([2, 1, 1, 0, 10, 64], [2, 3]);
      fixture.backend.countTokens(slots, rows);
      const counts = fixture.readWords(slots.counts);
      expectEqual("slot 0", counts.subarray(0, vocab), countsOf(histories[0]!, 10, vocab));
      expectEqual("slot 1", counts.subarray(vocab, 2 * vocab), Array(vocab).fill(0xffffffff));
      expectEqual("slot 2", counts.subarray(2 * vocab), countsOf(histories[2]!, 1, vocab));
    });
  }
}
