import { expect } from "bun:test";
import { NotDrawn } from "../../../src/base/not-drawn.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import * as reference from "../sampling-reference.ts";
import { type SlotParams, sampleRows, slotTensors } from "../slot-table.ts";

/** Samples `logits` [rows, vocab]; row i in slot rowSlots[i] after position positions[i]. */
function sample(
  fixture: Fixture,
  params: readonly SlotParams[],
  rowSlots: readonly number[],
  positions: readonly number[],
  logits: Float32Array,
  capacity = 64,
) {
  const vocab = logits.length / rowSlots.length;
  const slots = slotTensors(fixture, params, { vocab, capacity });
  const rows = sampleRows(fixture, rowSlots, positions);
  const out = fixture.output("int32", [rowSlots.length]);
  const input = fixture.input(logits, [rowSlots.length, vocab], "float32");
  fixture.backend.sample(out, input.tensor, input.tensor, rows, slots);
  return {
    tokens: [...fixture.readInts(out)],
    history: fixture.readInts(slots.tokens),
    lengths: fixture.readInts(slots.lengths),
    counts: fixture.readWords(slots.counts),
  };
}

function counting(length: number): number[] {
  return Array.from({ length }, (_, i) => i);
}

export function sampleCases(addCase: Case): void {
  for (const vocab of [1, 7, 4096, 151_936]) {
    addCase("sample", `greedy, vocabulary of ${vocab}, lowest id first on ties`, (fixture) => {
      const rows = 4;
      const logits = fixture.random.normals(rows * vocab, 2);
      const expected = counting(rows).map((row) => {
        const span = logits.subarray(row * vocab, (row + 1) * vocab);
        const ties = counting(3)
          .map(() => fixture.random.int(vocab))
          .sort((a, b) => a - b);
        for (const token of ties) span[token] = 50;
        return ties[0]!;
      });
      const params = Array(rows).fill({ temperature: 0, topK: 1, topP: 0.1 });
      const { tokens } = sample(fixture, params, counting(rows), Array(rows).fill(3), logits);
      expectEqual("tokens", tokens, expected);
    });
  }
  drawCases(addCase);
  recordCases(addCase);
}

const FILTERS: readonly SlotParams[] = [
  { temperature: 1 },
  { temperature: 0.6, topP: 0.95, topK: 20 },
  { temperature: 1.7, minP: 0.05 },
  { temperature: 0.3, topP: 0.4 },
  { temperature: 1, topK: 3, minP: 0.01, topP: 0.9 },
  // Many are kept.
  { temperature: 2, topK: 1000, topP: 0.9 },
  { temperature: 3, topP: 0.95 },
  { temperature: 2.5, minP: 1e-4 },
];

function drawCases(addCase: Case): void {
  for (const [vocab, perFilter] of [
    [1, 2],
    [7, 40],
    [4096, 4],
    [151_936, 1],
  ] as const) {
    addCase("sample", `vocabulary of ${vocab}: exactly the Gumbel-max draw of each seed`, (fixture) => {
      const params = FILTERS.map((filter, i) => ({
        ...filter,
        seed: [0xdeadbeef + i, 0x80000001 + i] as const,
      }));
      const rowSlots = counting(params.length * perFilter).map((row) => row % params.length);
      const positions = counting(rowSlots.length);
      const logits = fixture.random.normals(rowSlots.length * vocab, 3);
      const { tokens } = sample(fixture, params, rowSlots, positions, logits, 256);
      for (const [row, token] of tokens.entries()) {
        const span = logits.subarray(row * vocab, (row + 1) * vocab);
        reference.expectDraw(`row ${row}`, token, span, params[rowSlots[row]!]!, positions[row]! + 1);
      }
    });
  }

  addCase("sample", "many logits that are alike: exactly the Gumbel-max draw of each seed", (fixture) => {
    const [vocab, perFilter] = [20_000, 5];
    const filters: readonly SlotParams[] = [
      { topP: 0.5 },
      { topK: 12_000, topP: 0.2 },
      { topK: 9000 },
      { topK: 10, topP: 0.5 },
    ];
    const params = filters.map((filter, i): SlotParams => ({ temperature: 1, ...filter, seed: [i, 5] }));
    const rowSlots = counting(filters.length * perFilter).map((row) => row % filters.length);
    // They ascend in their last bits alone; for the last filter half of them are the largest.
    const logits = Float32Array.from({ length: rowSlots.length * vocab }, (_, i) => {
      const row = Math.floor(i / vocab);
      return rowSlots[row] === 3 ? 1.5 - 0.25 * fixture.random.int(2) : 1 + (i % vocab) / 2 ** 23;
    });
    const { tokens } = sample(fixture, params, rowSlots, counting(rowSlots.length), logits);
    for (const [row, token] of tokens.entries()) {
      const span = logits.subarray(row * vocab, (row + 1) * vocab);
      reference.expectDraw(`row ${row}`, token, span, params[rowSlots[row]!]!, row + 1);
    }
  });

  addCase("sample", "draws depend on seed and position alone, not on row order or batch size", (fixture) => {
    const [vocab, count] = [500, 12];
    const params = counting(count).map((i): SlotParams => ({ seed: [i, 7], topP: 0.9 }));
    const logits = fixture.random.normals(count * vocab, 2);
    const row = (i: number) => logits.subarray(i * vocab, (i + 1) * vocab);
    const positions = counting(count).map((i) => 3 * i);
    const { tokens } = sample(fixture, params, counting(count), positions, logits);
    const order = fixture.random.permutation(count);
    const shuffledLogits = Float32Array.from(order.flatMap((i) => [...row(i)]));
    const shuffled = sample(
      fixture,
      params,
      order,
      order.map((i) => positions[i]!),
      shuffledLogits,
    );
    expectEqual(
      "shuffled",
      shuffled.tokens,
      order.map((i) => tokens[i]!),
    );
    for (const i of [0, 5]) {
      const alone = sample(fixture, [params[i]!], [0], [positions[i]!], row(i).slice());
      expect(alone.tokens).toEqual([tokens[i]!]);
    }
    const otherSeeds = params.map((slot, i): SlotParams => ({ ...slot, seed: [i, 8] }));
    expect(sample(fixture, otherSeeds, counting(count), positions, logits).tokens).not.toEqual(tokens);
  });
}

function recordCases(addCase: Case): void {
  addCase(
    "sample",
    "slots with flags draw from the processed logits, all others from the unprocessed",
    (fixture) => {
      const [vocab, rows] = [600, 4];
      const flagged: SlotParams = { allowed: [1] };
      const filters: SlotParams[] = [{ temperature: 0 }, { temperature: 1, topK: 3, topP: 0.9 }];
      const params = filters.flatMap((filter) => [filter, { ...filter, ...flagged }]);
      const slots = slotTensors(fixture, params, { vocab });
      const peak = (token: number) => {
        const logits = new Float32Array(rows * vocab).fill(Number.NaN);
        return (row: number) => {
          logits.fill(0, row * vocab, (row + 1) * vocab);
          logits[row * vocab + token] = 50;
          return logits;
        };
      };
      const [plain, processed] = [peak(7), peak(550)];
      for (const row of [0, 2]) plain(row);
      for (const row of [1, 3]) processed(row);
      const shape = [rows, vocab];
      const [from, other] = [plain(0), processed(1)].map(
        (values) => fixture.input(values, shape, "float32").tensor,
      );
      const out = fixture.output("int32", [rows]);
      fixture.backend.sample(out, from!, other!, sampleRows(fixture, counting(rows), [0, 0, 0, 0]), slots);
      expectEqual("tokens", fixture.readInts(out), [7, 550, 7, 550]);
    },
  );

  addCase(
    "sample",
    "a row with a NaN, or with nothing above −∞, draws no token, says why and records nothing",
    (fixture) => {
      const vocab = 130;
      const params = counting(8).map(
        (i): SlotParams => ({
          temperature: i % 2,
          topK: i === 5 ? 4 : 0,
          repetitionPenalty: 1.1,
          tokens: [1, 2],
        }),
      );
      const logits = fixture.random.normals(8 * vocab);
      const row = (i: number) => logits.subarray(i * vocab, (i + 1) * vocab);
      row(0)[vocab - 1] = Number.NaN;
      row(1)[0] = Number.NaN;
      row(2).fill(-Infinity);
      row(3).fill(-Infinity);
      row(5)[64] = Number.NaN;
      const good = sample(
        fixture,
        [params[4]!, params[7]!],
        [0, 1],
        [1, 1],
        Float32Array.from([...row(4), ...row(7)]),
      );
      const { tokens, history, lengths, counts } = sample(
        fixture,
        params,
        counting(8),
        Array(8).fill(1),
        logits,
      );
      for (const failed of [0, 1, 2, 3, 5]) {
        const nothing = failed === 2 || failed === 3;
        expect(tokens[failed]).toBe(nothing ? NotDrawn.nothingAllowed : NotDrawn.notANumber);
        expectEqual(`history ${failed}`, history.subarray(failed * 64, failed * 64 + 4), [1, 2, -1, -1]);
        const slotCounts = counts.subarray(failed * vocab, (failed + 1) * vocab);
        expect(slotCounts.reduce((sum, count) => sum + count, 0)).toBe(2);
      }
      expect([...lengths]).toEqual([2, 2, 2, 2, 3, 2, 3, 3]);
      expect([tokens[4], tokens[7]]).toEqual(good.tokens);
      expect(tokens[6]).toBeGreaterThanOrEqual(0);
    },
  );

  addCase(
    "sample",
    "appends to its slot, and counts for penalties; a vacant slot stays vacant",
    (fixture) => {
      const [vocab, capacity] = [40, 8];
      const penalised: SlotParams = {
        temperature: 0,
        repetitionPenalty: 1.2,
        tokens: [5, 6],
        promptLength: 1,
      };
      const vacant: SlotParams = { temperature: 0, repetitionPenalty: 1 };
      const params: SlotParams[] = [{ temperature: 0, tokens: [5] }, penalised, vacant];
      const logits = new Float32Array(3 * vocab);
      for (const [row, token] of [11, 5, 39].entries()) logits[row * vocab + token] = 9;
      const { tokens, history, lengths, counts } = sample(
        fixture,
        params,
        [0, 1, 2],
        [0, 1, 0],
        logits,
        capacity,
      );
      expect(tokens).toEqual([11, 5, 39]);
      const expectedHistory = new Int32Array(3 * capacity).fill(-1);
      expectedHistory.set([5, 11], 0);
      expectedHistory.set([5, 6, 5], capacity);
      expectEqual("history", history, expectedHistory);
      expectEqual("lengths", lengths, [2, 3, 0]);
      const expectedCounts = new Uint32Array(3 * vocab).fill(0xffffffff).fill(0, vocab);
      expectedCounts[vocab + 5] = 0x80000001;
      expectedCounts[vocab + 6] = 1;
      expectEqual("counts", counts, expectedCounts);
    },
  );
}
