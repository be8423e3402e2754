import { expect, setDefaultTimeout, test } from "bun:test";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import { Workspace } from "../../../src/backend/workspace.ts";
import { BatchState } from "../../../src/runner/batch-state.ts";
import { Mailbox } from "../../../src/runner/mailbox.ts";
import { StepBuffers, writeRows } from "../../../src/runner/step-buffers.ts";
import { readInts, toyJoin } from "./toy-model.ts";

setDefaultTimeout(300_000);

/** Two sequences of 37 tokens at most: three blocks of 16, the last of them not all of use. */
const GROUPS = [{ reach: Infinity, parts: 1 }];
const SHAPE = { maxNumSeqs: 2, maxModelLen: 37, blockSize: 16, groups: GROUPS, vocabSize: 9 };

function setUp() {
  const backend = new CpuBackend();
  const state = new BatchState(backend, new Workspace(backend), SHAPE);
  const limits = { maxTokens: 8, maxRows: 2, maxLogits: 2, numGroups: 1, ...SHAPE };
  return { backend, state, buffers: new StepBuffers(backend, state.slots, limits) };
}

test("every block of a slot has an entry of its own, the last one too; the engine's block b is the device's b + 1", () => {
  const { backend, state } = setUp();
  const blockTableUpdates = [0, 1].flatMap((slot) =>
    [0, 1, 2].map((index) => ({ slot, group: 0, index, block: 10 * slot + index })),
  );
  state.apply({ joins: [], blockTableUpdates: blockTableUpdates.slice(0, 3) });
  state.apply({ joins: [], blockTableUpdates: blockTableUpdates.slice(3) });
  // The last slot is padding's: all of it lies in the scratch block.
  const table = [...readInts(backend, state.slots.blockTables)];
  expect(table).toEqual([1, 2, 3, 11, 12, 13, 0, 0, 0]);
  backend.dispose();
});

test("each group of layers has tables of its own, of which those of layers that share columns count their parts", () => {
  const backend = new CpuBackend();
  const groups = [...GROUPS, { reach: 20, parts: 4 }];
  const state = new BatchState(backend, new Workspace(backend), { ...SHAPE, groups });
  const update = (slot: number, group: number, index: number, block: number) => ({
    slot,
    group,
    index,
    block,
  });
  const blockTableUpdates = [update(0, 0, 0, 5), update(0, 1, 0, 6), update(1, 1, 2, 7)];
  state.apply({ joins: [], blockTableUpdates });
  const table = [...readInts(backend, state.slots.blockTables)];
  expect(table).toEqual([6, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0, 32, 0, 0, 0]);
  backend.dispose();
});

test("the last position of the longest sequence lies in its last block", () => {
  const { backend, state, buffers } = setUp();
  const tokens = Array.from({ length: 37 }, (_, i) => i % 9);
  const updates = [4, 7, 2].map((block, index) => ({ slot: 1, group: 0, index, block }));
  state.apply({
    joins: [toyJoin(1, tokens, { numComputedTokens: 31 })],
    blockTableUpdates: updates,
  });
  const rows = [{ slot: 1, count: 6, sample: true }, ...state.padding(1)];
  const mailbox = new Mailbox(backend, { depth: 1, inbox: 100, tokens: 1, logprobs: 1 });
  const { batch, batches, samples } = buffers.view(writeRows(mailbox.draft(), rows, 0, 1));
  backend.prepareBatch(batch, samples, mailbox.inbox, state.slots);
  expect([...readInts(backend, batch.positions)]).toEqual([31, 32, 33, 34, 35, 36, 0]);
  const expected = [8 * 16 + 15, 3 * 16, 3 * 16 + 1, 3 * 16 + 2, 3 * 16 + 3, 3 * 16 + 4, 0];
  expect([...readInts(backend, batches[0]!.slotMapping)]).toEqual(expected);
  expect([...readInts(backend, state.slots.numComputedTokens)]).toEqual([0, 37, 0]);
  backend.dispose();
});

test("of a join, what the sequence does not use is not uploaded", () => {
  const { backend, state } = setUp();
  const uploads: string[] = [];
  const { upload } = backend;
  backend.upload = (target, data) => {
    uploads.push(String(target));
    upload.call(backend, target, data);
  };
  state.apply({ joins: [toyJoin(0, [1, 2])], blockTableUpdates: [] });
  expect(uploads).toEqual(["int32[2]", "uint32[16]", "int32[4]"]);
  backend.dispose();
});

test("the tokens that a slot may draw are its own", () => {
  const { backend, state } = setUp();
  state.allow(1, { mask: Uint32Array.of(0b101) });
  state.allow(0, { mask: Uint32Array.of(0b10) });
  expect([...readInts(backend, state.slots.allowed)]).toEqual([0b10, 0b101, 0]);
  backend.dispose();
});

test("a mask that the device has is not uploaded again, whatever else its slot had in between", () => {
  const { backend, state } = setUp();
  let uploads = 0;
  const { upload } = backend;
  backend.upload = (target, data) => {
    if (target.toString() === state.slots.allowed.rows(0, 1).reshape(1).toString()) uploads++;
    upload.call(backend, target, data);
  };
  const word = () => readInts(backend, state.slots.allowed)[1];
  const mask = Uint32Array.of(0b101);
  state.allow(1, { mask, version: 1 });
  state.allow(1, { mask, version: 1 });
  expect([uploads, word()]).toEqual([1, 0b101]);
  mask[0] = 0b11;
  state.allow(1, { mask, version: 2 });
  expect([uploads, word()]).toEqual([2, 0b11]);
  state.allow(1, { mask: Uint32Array.of(0b1), version: 2 });
  state.allow(1, { mask, version: 2 });
  expect([uploads, word()]).toEqual([4, 0b11]);
  for (let i = 0; i < 2; i++) state.allow(0, { mask });
  expect(uploads).toBe(6);
  const sampling = { ...toyJoin(1, [3]).sampling, allowedTokenIds: [2] };
  state.apply({ joins: [{ ...toyJoin(1, [3]), sampling }], blockTableUpdates: [] });
  expect(word()).toBe(0b100);
  state.allow(1, { mask, version: 2 });
  expect(word()).toBe(0b11);
  backend.dispose();
});
