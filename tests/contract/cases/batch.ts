import {
  JOIN_WORDS,
  type SampleRows,
  type SlotTensors,
  type StepBatch,
} from "../../../src/backend/backend.ts";
import { rowWords } from "../../../src/backend/row-words.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";
import { extentsOf, type RowShape, raggedBatch } from "../ragged-batch.ts";
import { countsOf, slotTensors } from "../slot-table.ts";
import { stepAreas } from "../step-areas.ts";

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

/** Steps before, for each batch: the count wraps around. */
const STEPS = [0, 6, 2 ** 32 - 1];

/** Groups of layers, for each batch, and how much longer than the batch each one's slot mappings are. */
const GROUPS = [1, 3, 2];
const ROOM = [0, 5, 3];

/** Of slots that no row has. */
const POISONED = 0x7fffffff;

export function batchCases(addCase: Case): void {
  for (const [i, rows] of BATCHES.entries()) {
    for (const blockSize of [16, 64]) {
      const [step, groups, room] = [STEPS[i]!, GROUPS[i]!, ROOM[i]!];
      const title = `rows ${JSON.stringify(rows)}, ${groups} groups, blocks of ${blockSize}`;
      addCase("prepareBatch", title, (fixture) => {
        const batch = raggedBatch(fixture, rows, blockSize);
        // Each group has other blocks.
        const tables = Array.from({ length: groups }, (_, group) =>
          batch.blockTables.map((block) => (block === POISONED ? block : block + 1000 * group)),
        );
        const capacity = batch.maxBlocks * blockSize - 3;
        const tokens = Int32Array.from({ length: batch.numSlots * capacity }, () =>
          fixture.random.int(1 << 20),
        );
        const numComputed = new Int32Array(batch.numSlots).fill(POISONED);
        const lengths = new Int32Array(batch.numSlots).fill(POISONED);
        for (const [i, [contextLen, queryLen]] of rows.entries()) {
          numComputed[batch.rowSlots[i]!] = contextLen - queryLen;
          // The second row is padding: its slot is vacant.
          lengths[batch.rowSlots[i]!] = i === 1 ? 0 : contextLen + (i % 2);
        }
        const slots: SlotTensors = {
          ...slotTensors(fixture, Array(batch.numSlots).fill({}), { vocab: 1 }),
          tokens: fixture.ints(tokens, [batch.numSlots, capacity]),
          lengths: fixture.ints(lengths),
          numComputedTokens: fixture.stateOf("int32", numComputed, [batch.numSlots]),
          blockTables: fixture.output("int32", [groups, batch.numSlots, batch.maxBlocks]),
        };
        const output = (size: number) => fixture.output("int32", [size]);
        const tensors: StepBatch = {
          ...extentsOf(batch),
          tokenIds: output(batch.numTokens),
          positions: output(batch.numTokens),
          slotMappings: fixture.output("int32", [groups, batch.numTokens + room]),
          cuSeqlensQ: output(rows.length + 1),
          contextLens: output(rows.length),
          rowSlots: output(rows.length),
        };
        // All rows but the first are sampled, the last one at index 0.
        const sampled = rows.map((_, i) => i).slice(1);
        sampled.unshift(...sampled.splice(-1));
        const samples: SampleRows = {
          slots: output(sampled.length),
          positions: output(sampled.length),
          tokenIndices: output(sampled.length),
        };
        // Each row but the first brings its last block in all groups but one; until then those tables have none there.
        const given = tables.map((table) => table.slice());
        const words = rows.flatMap(([contextLen, queryLen], i) => {
          const last = Math.ceil(contextLen / blockSize) - 1;
          const at = batch.rowSlots[i]! * batch.maxBlocks + last;
          const brought = tables.map((table, group) => {
            if (i === 0) return POISONED;
            if (groups > 1 && group === i % groups) return -1;
            given[group]![at] = POISONED;
            return table[at]!;
          });
          return [batch.rowSlots[i]!, queryLen, sampled.indexOf(i), i > 0 ? last : -1, ...brought];
        });
        fixture.backend.upload(slots.blockTables, Int32Array.from(given.flatMap((table) => [...table])));
        const inbox = stepAreas(fixture, { step, depth: 4, words: rowWords(groups) * rows.length + 3 });
        inbox.area(step % 4).set(words);
        fixture.backend.prepareBatch(tensors, samples, inbox, slots);
        const expected = tables.flatMap((table) => [...table]);
        expectEqual("blockTables", fixture.readInts(slots.blockTables), expected);
        expectEqual("steps", fixture.readWords(inbox.steps), [(step + 1) % 2 ** 32]);

        const tokenIds = rows.flatMap(([contextLen, queryLen], i) => {
          const start = batch.rowSlots[i]! * capacity;
          return [...tokens.subarray(start + contextLen - queryLen, start + contextLen)];
        });
        expectEqual("tokenIds", fixture.readInts(tensors.tokenIds), tokenIds);
        expectEqual("positions", fixture.readInts(tensors.positions), batch.positions);
        for (const group of tables.keys()) {
          const mapping = tensors.slotMappings.rows(group, group + 1).reshape(batch.numTokens + room);
          const slotMapping = batch.slotMapping.map((slot) => slot + 1000 * group * blockSize);
          const name = `slotMapping of group ${group}`;
          expectEqual(name, fixture.readInts(mapping.rows(0, batch.numTokens)), slotMapping);
        }
        expectEqual("cuSeqlensQ", fixture.readInts(tensors.cuSeqlensQ), batch.cuSeqlensQ);
        const contextLens = rows.map(([contextLen]) => contextLen);
        expectEqual("contextLens", fixture.readInts(tensors.contextLens), contextLens);
        expectEqual("rowSlots", fixture.readInts(tensors.rowSlots), batch.rowSlots);
        const ofSamples = (of: (row: number) => number) => sampled.map(of);
        expectEqual(
          "samples.slots",
          fixture.readInts(samples.slots),
          ofSamples((i) => batch.rowSlots[i]!),
        );
        expectEqual(
          "samples.positions",
          fixture.readInts(samples.positions),
          ofSamples((i) => contextLens[i]! - 1),
        );
        expectEqual(
          "samples.tokenIndices",
          fixture.readInts(samples.tokenIndices),
          ofSamples((i) => batch.cuSeqlensQ[i + 1]! - 1),
        );
        for (const [i, slot] of batch.rowSlots.entries()) if (i !== 1) numComputed[slot] = contextLens[i]!;
        expectEqual("numComputedTokens", fixture.readInts(slots.numComputedTokens), numComputed);
      });
    }
  }

  addCase("prepareBatch", "rows of one vacant slot all compute its first positions", (fixture) => {
    const [slots, blockSize] = [slotTensors(fixture, [{ tokens: [1] }, {}], { vocab: 1 }), 4];
    const count = 300;
    const output = (size: number) => fixture.output("int32", [size]);
    const tensors: StepBatch = {
      ...{ numTokens: 2 * count, numRows: count, decodeRows: 0, maxQueryLen: 2, blockSize },
      ...{ tokenIds: output(2 * count), positions: output(2 * count) },
      slotMappings: fixture.output("int32", [1, 2 * count]),
      ...{ cuSeqlensQ: output(count + 1), contextLens: output(count), rowSlots: output(count) },
    };
    const blockTables = fixture.ints([9, 5], [1, 2, 1]);
    const none: SampleRows = { slots: output(0), positions: output(0), tokenIndices: output(0) };
    const inbox = stepAreas(fixture, { step: 0, depth: 1, words: rowWords(1) * count });
    inbox.area(0).set(Array.from({ length: count }, () => [1, 2, -1, -1, 0]).flat());
    fixture.backend.prepareBatch(tensors, none, inbox, { ...slots, blockTables });
    expectEqual("positions", fixture.readInts(tensors.positions), Array(count).fill([0, 1]).flat());
    const mapping = Array(count).fill([20, 21]).flat();
    expectEqual("slotMappings", fixture.readInts(tensors.slotMappings), mapping);
    expectEqual("contextLens", fixture.readInts(tensors.contextLens), Array(count).fill(2));
    expectEqual("numComputedTokens", fixture.readInts(slots.numComputedTokens), [1, 0]);
  });

  for (const [count, begun] of [
    [1, 1],
    [300, 6],
    [5, 0],
  ] as const) {
    addCase("post", `${count} words of step ${begun - 1} go to its area alone`, (fixture) => {
      const outbox = stepAreas(fixture, { step: begun, depth: 2, words: 300 });
      const results = fixture.ints(Array.from({ length: count }, (_, i) => 7 * i - 3));
      fixture.backend.post(outbox, results);
      fixture.backend.fence().wait();
      const [own, other] = begun % 2 === 1 ? [0, 1] : [1, 0];
      const expected = new Int32Array(300).fill(-1);
      expectEqual("the other area", outbox.area(other), expected);
      expected.set(fixture.readInts(results));
      expectEqual("the step's area", outbox.area(own), expected);
    });
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
    addCase("joinSlots", `vocabulary of ${vocab}: two slots are taken, the others stay`, (fixture) => {
      const draw = (length: number) => Array.from({ length }, () => fixture.random.int(vocab));
      const histories = [draw(60), draw(40), draw(3), draw(5)];
      const penalised = (i: number) => i !== 3 && { repetitionPenalty: 1.5 };
      const params = histories.map((tokens, i) => ({ tokens, ...penalised(i) }));
      const slots = slotTensors(fixture, params, { vocab });
      const before = fixture.readWords(slots.counts);
      const joins = fixture.ints([2, 1, 2, 1, 0, 10, 60, 48, 3, 5, 5, 0], [3, JOIN_WORDS]);
      fixture.backend.joinSlots(slots, joins);
      expectEqual("lengths", fixture.readInts(slots.lengths), [60, 40, 2, 5]);
      expectEqual("numComputedTokens", fixture.readInts(slots.numComputedTokens), [48, 40, 1, 0]);
      const counts = fixture.readWords(slots.counts);
      const of = (words: Uint32Array, slot: number) => words.subarray(slot * vocab, (slot + 1) * vocab);
      expectEqual("slot 0", of(counts, 0), countsOf(histories[0]!, 10, vocab));
      expectEqual("slot 1", of(counts, 1), of(before, 1));
      expectEqual("slot 2", of(counts, 2), countsOf(histories[2]!.slice(0, 2), 1, vocab));
      expectEqual("slot 3, without penalties", of(counts, 3), of(before, 3));
    });
  }
}
