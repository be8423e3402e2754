import type { Case } from "../backend.contract.ts";
import { expectClose, expectEqual } from "../compare.ts";
import * as reference from "../sampling-reference.ts";
import { type SlotParams, sampleRows, slotTensors } from "../slot-table.ts";

const VOCABULARIES = [1, 7, 4096, 151_936];
const FOREVER = 0x7fffffff;

/** Slots that use each kind of processing alone, all together, and none. Token ids are taken modulo `vocab`. */
function slotsFor(vocab: number): SlotParams[] {
  const id = (token: number) => token % vocab;
  const tokens = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3].map(id);
  const penalties = { repetitionPenalty: 1.3, frequencyPenalty: 0.25, presencePenalty: -0.5 };
  const edits = [
    { token: id(5), value: 2.5, until: FOREVER },
    { token: id(4095), value: -Infinity, until: 11 },
    { token: id(2), value: -Infinity, until: 10 },
    { token: id(5), value: -1, until: 12 },
    { token: id(33), value: 100, until: 9 },
  ];
  // The history ends in … 6, 5, 3: the second and the fourth sequence match, and the first always does.
  const badWords = [
    [id(vocab - 1)],
    [5, 3, 40].map(id),
    [5, 4, 41].map(id),
    [6, 5, 3, 42].map(id),
    [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 3, 43].map(id),
  ];
  const allowed = [...new Set([0, 1, 5, 31, 32, 63, 64, 4095, 100_000].map(id))];
  return [
    { tokens, promptLength: 4, ...penalties },
    { tokens, promptLength: 10, repetitionPenalty: 0.7, presencePenalty: 2, frequencyPenalty: 2 },
    { tokens, promptLength: 0, edits },
    { tokens, promptLength: 0, badWords },
    { tokens, promptLength: 0, allowed },
    { tokens, promptLength: 2, ...penalties, edits, badWords, allowed },
    { tokens },
  ];
}

export function processLogitsCases(addCase: Case): void {
  for (const vocab of VOCABULARIES) {
    for (const inPlace of [false, true]) {
      addCase(
        "processLogits",
        `vocabulary of ${vocab}, every kind of processing${inPlace ? ", in place" : ""}`,
        (fixture) => {
          const params = slotsFor(vocab);
          const slots = slotTensors(fixture, params, { vocab });
          const rowSlots = fixture.random.permutation(params.length);
          const rows = sampleRows(fixture, rowSlots, Array(rowSlots.length).fill(9));
          const values = fixture.random.normals(rowSlots.length * vocab, 4);
          const shape = [rowSlots.length, vocab];
          const logits = inPlace
            ? fixture.state(values, shape, "float32")
            : fixture.input(values, shape, "float32");
          const out = inPlace ? logits.tensor : fixture.output("float32", shape);
          const before = fixture.readWords(slots.counts);
          fixture.backend.processLogits(out, logits.tensor, rows, slots);
          const actual = fixture.readFloats(out);
          for (const [row, slot] of rowSlots.entries()) {
            const span = [row * vocab, (row + 1) * vocab] as const;
            const { tokens = [] } = params[slot]!;
            const input = values.subarray(...span);
            if (!inPlace && Object.keys(params[slot]!).join() === "tokens") {
              if (!actual.subarray(...span).every(Number.isNaN))
                throw new Error("a row without work was written");
              continue;
            }
            const expected = reference.processLogits(input, params[slot]!, tokens);
            const magnitudes = expected.map((value, i) => Math.abs(value) + Math.abs(input[i]!) + 4);
            const precision = { dtype: "float32", reduction: 1 } as const;
            expectClose(
              `slot ${slot}`,
              actual.subarray(...span),
              { values: expected, magnitudes },
              precision,
            );
          }
          expectEqual("counts", fixture.readWords(slots.counts), before);
        },
      );
    }
  }

  addCase("processLogits", "bad words and edits look at each row's position", (fixture) => {
    const vocab = 50;
    const tokens = [7, 8, 7, 8, 9];
    const slot: SlotParams = {
      tokens,
      promptLength: 0,
      badWords: [
        [7, 8, 20],
        [7, 8, 7, 8, 21],
        [8, 7, 22],
      ],
      edits: [{ token: 30, value: 1, until: 3 }],
    };
    // The neighbour's history ends where this slot's begins, with an 8: no part of this slot's text.
    const slots = slotTensors(fixture, [{ tokens: Array(64).fill(8) }, slot], { vocab });
    const positions = [0, 1, 2, 3, 4];
    const rows = sampleRows(fixture, [1, 1, 1, 1, 1], positions);
    const logits = fixture.input(new Float32Array(5 * vocab), [5, vocab], "float32");
    const out = fixture.output("float32", [5, vocab]);
    fixture.backend.processLogits(out, logits.tensor, rows, slots);
    const actual = fixture.readFloats(out);
    const column = (token: number) => positions.map((row) => actual[row * vocab + token]);
    expectEqual("token 20", column(20) as number[], [0, -Infinity, 0, -Infinity, 0]);
    expectEqual("token 21", column(21) as number[], [0, 0, 0, -Infinity, 0]);
    expectEqual("token 22", column(22) as number[], [0, 0, -Infinity, 0, 0]);
    expectEqual("token 30", column(30) as number[], [1, 1, 0, 0, 0]);
  });
}
