import { expect, setDefaultTimeout, test } from "bun:test";
import { ROW_WORDS, RowWord } from "../../../src/backend/backend.ts";
import { deviceBlock } from "../../../src/runner/kv-cache.ts";
import { inboxWords, writeBlocks, writeRows } from "../../../src/runner/step-buffers.ts";

setDefaultTimeout(300_000);

const row = (slot: number) => ({ slot, count: 1, sample: true });

test("a row brings one new block of its own slot; others are left to be told apart", () => {
  const rows = [4, 2, 7].map(row);
  const words = new Int32Array(inboxWords({ maxRows: 3 })).fill(99);
  const [first, second, third, fourth] = [
    { slot: 4, index: 3, block: 11 },
    { slot: 4, index: 4, block: 12 },
    { slot: 7, index: 0, block: 0 },
    { slot: 5, index: 1, block: 13 },
  ];
  // Of slots, what steps before may have left: one that has a row now, one that has none, and no row at all.
  for (const left of [0, 1, 40]) {
    writeRows(words, rows, 3);
    const rowOfSlot = new Int32Array(8).fill(left);
    const updates = [first!, second!, third!, fourth!];
    expect(writeBlocks(words, rows, updates, rowOfSlot)).toEqual([second!, fourth!]);
  }
  const brought = rows.map((_, i) => [
    words[i * ROW_WORDS + RowWord.blockIndex],
    words[i * ROW_WORDS + RowWord.block],
  ]);
  expect(brought[0]).toEqual([3, deviceBlock(11)]);
  expect(brought[1]![0]).toBe(-1);
  expect(brought[2]).toEqual([0, deviceBlock(0)]);
});

test("rows in another order than the blocks bring them, too", () => {
  const rows = [0, 1, 2, 3].map(row);
  const words = new Int32Array(inboxWords({ maxRows: 4 }));
  const rowOfSlot = new Int32Array(4);
  writeRows(words, rows, 4);
  const updates = [3, 1, 2, 0].map((slot) => ({ slot, index: slot, block: slot }));
  expect(writeBlocks(words, rows, updates, rowOfSlot)).toEqual([]);
  for (const slot of [0, 1, 2, 3]) expect(words[slot * ROW_WORDS + RowWord.block]).toBe(deviceBlock(slot));
});
