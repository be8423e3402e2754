import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { FakeOperands } from "./fake-operands.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { machine, backend, launch, launches } = recorder;
const { f32, i32, slotTables, sampleRows } = new FakeOperands();
const address = (tensor: Tensor) => tensor.address;

test.each([
  [1, 100],
  [3, 512],
  [256, 151_936],
  [300, 262_144],
])("logits of %d rows over %d tokens are processed, drawn from and ranked", (rows, vocab) => {
  const slots = slotTables(vocab);
  const [logits, out] = [f32(rows, vocab), i32(rows)];
  const samples = sampleRows(rows);
  const tiles = Math.ceil(vocab / 512);
  const common = {
    ...{
      logits: address(logits),
      row_slots: address(samples.slots),
      positions: address(samples.positions),
    },
    ...{ params: address(slots.params), vocab },
  };

  const processed = launch(() => backend.processLogits(logits, logits, samples, slots));
  expect(processed.grid[1]).toBe(rows);
  expect(namedArguments(processed)).toEqual({
    ...{ ...common, out: address(logits), tokens: address(slots.tokens), edits: address(slots.edits) },
    ...{
      bad_words: address(slots.badWords),
      allowed: address(slots.allowed),
      counts: address(slots.counts),
    },
    capacity: 1025,
  });

  const [tile, row] = launches(() => backend.sample(out, logits, logits, samples, slots));
  expect([tile!.entry, tile!.grid[1]]).toEqual(["sample_tiles", rows]);
  expect(tile!.grid[0]! * (tile!.block[0]! / 32)).toBeGreaterThanOrEqual(tiles);
  const { stats, ...tileArguments } = namedArguments(tile!);
  expect(tileArguments).toEqual({ ...common, processed: address(logits), first_token: 0, tiles });
  expect(machine.cuda.bytesOf(stats!).length).toBeGreaterThanOrEqual(rows * tiles * 16);
  expect(row).toMatchObject({ entry: "sample_rows", grid: [rows, 1, 1], sharedBytes: 4 * tiles });
  expect(namedArguments(row!)).toEqual({
    ...{ ...common, processed: address(logits), out: address(out), stats: stats! },
    tokens: address(slots.tokens),
    ...{ lengths: address(slots.lengths), counts: address(slots.counts), tiles, capacity: 1025 },
  });

  const ranked = { chosen: f32(rows), ranks: i32(rows), topIds: i32(rows, 5), topLogprobs: f32(rows, 5) };
  const [sums, ranks] = launches(() => backend.logprobs(ranked, logits, out));
  const { stats: sumsAt, ...sumArguments } = namedArguments(sums!);
  expect(sumArguments).toEqual({ logits: address(logits), rows: 0, vocab, tiles });
  expect(machine.cuda.bytesOf(sumsAt!).length).toBeGreaterThanOrEqual(rows * tiles * 8);
  expect(namedArguments(ranks!)).toEqual({
    ...{ chosen: address(ranked.chosen), ranks: address(ranked.ranks), top_ids: address(ranked.topIds) },
    ...{ top_logprobs: address(ranked.topLogprobs), logits: address(logits), stats: sumsAt!, vocab, tiles },
    ...{ tokens: address(out), rows: 0, top: 5 },
  });
});
