import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { JOIN_WORDS } from "../../../../src/backend/backend.ts";
import { rowWords } from "../../../../src/backend/row-words.ts";
import type { Tensor } from "../../../../src/backend/tensor.ts";
import { FakeOperands } from "./fake-operands.ts";
import { namedArguments } from "./kernel-signatures.ts";
import { LaunchRecorder } from "./launch-recorder.ts";

setDefaultTimeout(300_000);

const recorder = new LaunchRecorder();
afterAll(() => recorder[Symbol.dispose]());
const { backend, launch } = recorder;
const operands = new FakeOperands();
const { i32, batch, stepBatch, slotTables, sampleRows } = operands;
const address = (tensor: Tensor) => tensor.address;

describe("the batch", () => {
  test.each([
    [1, [5], 1],
    [256, [], 1],
    [200, [], 7],
    [0, [16000, 384], 2],
  ])("of %d decode rows and prompts of %p, in %d groups", (decodeRows, prefill, groups) => {
    const step = stepBatch(batch({ decodeRows, prefill }), groups);
    const slots = slotTables(100, 300, groups);
    const inbox = { steps: operands.of("uint32", 1), areas: i32(2, 5000) };
    const samples = sampleRows(step.numRows);
    const prepared = launch(() => backend.prepareBatch(step, samples, inbox, slots));
    // More than one block could see a slot advanced before it has read where the slot starts.
    expect(prepared.grid).toEqual([1, 1, 1]);
    expect(prepared.sharedBytes).toBe(4 * rowWords(groups) * step.numRows);
    expect(namedArguments(prepared)).toEqual({
      ...{ token_ids: address(step.tokenIds), positions: address(step.positions) },
      ...{ groups, mapping_stride: step.numTokens + 7, slots: 300 },
      ...{ slot_mappings: address(step.slotMappings), cu_seqlens_q: address(step.cuSeqlensQ) },
      ...{ context_lens: address(step.contextLens), row_slots: address(step.rowSlots) },
      ...{ steps: address(inbox.steps), inbox: address(inbox.areas), areas: 2, area_words: 5000 },
      ...{ sample_slots: address(samples.slots), sample_positions: address(samples.positions) },
      ...{ sample_tokens: address(samples.tokenIndices), num_computed: address(slots.numComputedTokens) },
      ...{ tokens: address(slots.tokens), lengths: address(slots.lengths) },
      ...{
        block_tables: address(slots.blockTables),
        num_tokens: step.numTokens,
        num_rows: step.numRows,
        capacity: 1025,
        max_blocks: 64,
        block_size: 16,
      },
    });
  });

  test("of as many rows as there can be, and its answer", () => {
    const step = stepBatch(batch({ decodeRows: 4096, prefill: [] }));
    const areas = { steps: operands.of("uint32", 1), areas: i32(4, 4096 * rowWords(1)) };
    launch(() => backend.prepareBatch(step, sampleRows(4096), areas, slotTables(100)));
    const results = i32(700);
    const posted = launch(() => backend.post(areas, results));
    expect(posted.grid[0]! * posted.block[0]!).toBeGreaterThanOrEqual(700);
    expect(namedArguments(posted)).toEqual({
      ...{ outbox: address(areas.areas), results: address(results), steps: address(areas.steps) },
      ...{ areas: 4, area_words: 4096 * rowWords(1), count: 700 },
    });
  });

  test.each([1, 1000])("%d table entries are scattered, and slots taken", (count) => {
    const slots = slotTables(5000);
    const [indices, values] = [i32(count), i32(count)];
    const scatter = launch(() => backend.scatter(slots.blockTables, indices, values));
    expect(scatter.grid[0]! * scatter.block[0]!).toBeGreaterThanOrEqual(count);
    expect(namedArguments(scatter)).toEqual({
      ...{ target: address(slots.blockTables), indices: address(indices), values: address(values), count },
    });
    const joins = i32(count, JOIN_WORDS);
    const joining = launch(() => backend.joinSlots(slots, joins));
    expect(joining.grid).toEqual([count, 1, 1]);
    expect(namedArguments(joining)).toEqual({
      ...{ lengths: address(slots.lengths), num_computed: address(slots.numComputedTokens) },
      ...{ counts: address(slots.counts), tokens: address(slots.tokens), params: address(slots.params) },
      ...{ joins: address(joins), capacity: 1025, vocab: 5000 },
    });
  });
});
