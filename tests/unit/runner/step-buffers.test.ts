import { expect, setDefaultTimeout, test } from "bun:test";
import { RowWord, rowWords } from "../../../src/backend/row-words.ts";
import { deviceBlock } from "../../../src/runner/kv-cache.ts";
import { inboxWords, writeBlocks, writeRows } from "../../../src/runner/step-buffers.ts";

setDefaultTimeout(300_000);

const ONE = [{ reach: Infinity, parts: 1 }];
const row = (slot: number) => ({ slot, count: 1, sample: true });

test("a row brings one new block of its own slot; others are left to be told apart", () => {
  const rows = [4, 2, 7].map(row);
  const words = new Int32Array(inboxWords({ maxRows: 3, numGroups: 1 })).fill(99);
  const [first, second, third, fourth] = [
    { slot: 4, group: 0, index: 3, block: 11 },
    { slot: 4, group: 0, index: 4, block: 12 },
    { slot: 7, group: 0, index: 0, block: 0 },
    { slot: 5, group: 0, index: 1, block: 13 },
  ];
  // Of slots, what steps before may have left: one that has a row now, one that has none, and no row at all.
  for (const left of [0, 1, 40]) {
    writeRows(words, rows, 3, 1);
    const rowOfSlot = new Int32Array(8).fill(left);
    const updates = [first!, second!, third!, fourth!];
    expect(writeBlocks(words, rows, updates, rowOfSlot, ONE)).toEqual([second!, fourth!]);
  }
  const brought = rows.map((_, i) => [
    words[i * rowWords(1) + RowWord.blockIndex],
    words[i * rowWords(1) + RowWord.block],
  ]);
  expect(brought[0]).toEqual([3, deviceBlock(11)]);
  expect(brought[1]![0]).toBe(-1);
  expect(brought[2]).toEqual([0, deviceBlock(0)]);
});

test("rows in another order than the blocks bring them, too", () => {
  const rows = [0, 1, 2, 3].map(row);
  const words = new Int32Array(inboxWords({ maxRows: 4, numGroups: 1 }));
  const rowOfSlot = new Int32Array(4);
  writeRows(words, rows, 4, 1);
  const updates = [3, 1, 2, 0].map((slot) => ({ slot, group: 0, index: slot, block: slot }));
  expect(writeBlocks(words, rows, updates, rowOfSlot, ONE)).toEqual([]);
  for (const slot of [0, 1, 2, 3]) expect(words[slot * rowWords(1) + RowWord.block]).toBe(deviceBlock(slot));
});

test("a row brings the blocks of several groups at one index", () => {
  const words = new Int32Array(inboxWords({ maxRows: 2, numGroups: 3 })).fill(99);
  const rows = [row(1), row(0)];
  const groups = [...ONE, { reach: 5, parts: 1 }, { reach: 5, parts: 2 }];
  writeRows(words, rows, 2, 3);
  const update = (slot: number, group: number, index: number) => ({ slot, group, index, block: 10 * group });
  const [own, other, later] = [update(1, 0, 5), update(1, 2, 5), update(1, 1, 6)];
  const again = { ...own, block: 3 };
  const updates = [own, other, later, again, update(0, 1, 0)];
  expect(writeBlocks(words, rows, updates, new Int32Array(2), groups)).toEqual([later, again]);
  const records = rows.map((_, i) => [...words.subarray(i * rowWords(3), (i + 1) * rowWords(3))]);
  expect(records).toEqual([
    [1, 1, 0, 5, deviceBlock(0), -1, 2 * deviceBlock(20)],
    [0, 1, 1, 0, -1, deviceBlock(10), -1],
  ]);
});
