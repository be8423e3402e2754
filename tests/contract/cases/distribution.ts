import { expect } from "bun:test";
import type { SlotTensors } from "../../../src/backend/backend.ts";
import type { Tensor } from "../../../src/backend/tensor.ts";
import { denseWeight } from "../../../src/backend/weight.ts";
import type { Case } from "../backend.contract.ts";
import type { Fixture } from "../fixture.ts";
import * as reference from "../sampling-reference.ts";
import { type SlotParams, sampleRows, slotTensors } from "../slot-table.ts";

/** Draws of a case, each at a position of its own: those that every backend makes, and those that a grid has made at once. */
const DRAWS = [
  ["2^17", 2 ** 17],
  ["2^20", 2 ** 20, "grid"],
] as const;
/** As many as the rows of a grid on the GPU. */
const BATCH = 2 ** 15;

/** Exact in 16 bits; no cumulative probability lies near a threshold that the cases use. */
const LOGITS = [1.5, -0.5, 0.25, 2, -20, 0.875, -1.25, 2, 0.125, -2.5, 1.125, -0.0625];

/** How often each token comes among some draws, of batches that `draw` draws after its positions. */
function countDraws(
  fixture: Fixture,
  slot: SlotParams,
  draw: (out: Tensor, samples: ReturnType<typeof sampleRows>, slots: SlotTensors) => void,
  { draws, batch = BATCH, vocab = LOGITS.length }: { draws: number; batch?: number; vocab?: number },
): Float64Array {
  const { backend } = fixture;
  const slots = slotTensors(fixture, [slot], { vocab, capacity: 4 });
  const positions = fixture.stateOf("int32", new Int32Array(batch), [batch]);
  const samples = { ...sampleRows(fixture, Array(batch).fill(0), []), positions };
  const out = fixture.output("int32", [batch]);
  const counts = new Float64Array(vocab);
  for (let first = 0; first < draws; first += batch) {
    backend.upload(
      positions,
      Int32Array.from({ length: batch }, (_, i) => first + i),
    );
    draw(out, samples, slots);
    for (const token of fixture.readInts(out)) counts[token]!++;
  }
  return counts;
}

/** Fails for a token that is cut and drawn, and where the chi-square statistic is five deviations above its mean. */
function expectDistributed(counts: Float64Array, slot: SlotParams, logits: readonly number[] = LOGITS): void {
  const draws = counts.reduce((sum, count) => sum + count, 0);
  const expected = reference.distribution(logits, slot).map((probability) => draws * probability);
  let [chiSquare, kept, rare] = [0, 0, 0];
  for (const [token, mean] of expected.entries()) {
    const seen = counts[token]!;
    if (mean === 0 && seen > 0) throw new Error(`token ${token} was cut, drawn ${seen} times`);
    // The statistic is distributed so for tokens that are expected a few times at least.
    if (mean < 5) rare += seen;
    else {
      kept++;
      chiSquare += (seen - mean) ** 2 / mean;
    }
  }
  expect(rare).toBeLessThan(20);
  expect(chiSquare).toBeLessThanOrEqual(kept - 1 + 5 * Math.sqrt(2 * (kept - 1)) + 1e-9);
}

export function distributionCases(addCase: Case): void {
  for (const filter of [
    { temperature: 1 },
    { temperature: 0.7 },
    { temperature: 1, topK: 3 },
    { temperature: 1, topK: 1 },
    { temperature: 1.3, topP: 0.6 },
    { temperature: 1, topP: 1e-6 },
    { temperature: 1, minP: 0.3 },
    { temperature: 2, topK: 7, minP: 0.2, topP: 0.8 },
  ] satisfies SlotParams[]) {
    for (const [power, draws, size] of DRAWS) {
      const title = `${JSON.stringify(filter)}: support and chi-square over ${power} positions`;
      const body = (fixture: Fixture) => {
        const slot: SlotParams = { ...filter, seed: [1234, 5678] };
        const rows = new Float32Array(BATCH * LOGITS.length);
        for (let row = 0; row < BATCH; row++) rows.set(LOGITS, row * LOGITS.length);
        const { tensor } = fixture.input(rows, [BATCH, LOGITS.length], "float32");
        const counts = countDraws(
          fixture,
          slot,
          (out, samples, slots) => fixture.backend.sample(out, tensor, tensor, samples, slots),
          { draws },
        );
        expectDistributed(counts, slot);
      };
      addCase("sample", title, body, size);
    }
  }

  for (const [power, draws, size] of DRAWS) {
    const body = (fixture: Fixture) => {
      const slot: SlotParams = { temperature: 0.7, seed: [4321, 99] };
      const hidden = fixture.input(new Float32Array(BATCH).fill(1), [BATCH, 1]);
      const weight = denseWeight(fixture.input(Float32Array.from(LOGITS), [LOGITS.length, 1]).tensor);
      const logits = fixture.output("float32", [BATCH, LOGITS.length]);
      const counts = countDraws(
        fixture,
        slot,
        (out, samples, slots) =>
          fixture.backend.drawTokens(out, hidden.tensor, { weight }, logits, samples, slots),
        { draws },
      );
      expectDistributed(counts, slot);
    };
    addCase("drawTokens", `temperature 0.7: support and chi-square over ${power} positions`, body, size);
  }
  addCase(
    "drawTokens",
    "of a head of whole tiles, in batches of 200: chi-square over 2^17 positions",
    (fixture) => {
      const [batch, vocab, width, draws] = [200, 256, 64, 2 ** 17];
      // Hidden states are a unit vector, so the logits are a column of the head.
      const logits = Array.from(
        { length: vocab },
        (_, token) => LOGITS[token % LOGITS.length]! - (token >> 6),
      );
      const table = new Float32Array(vocab * width);
      for (const [token, logit] of logits.entries()) table[token * width + 5] = logit / 8;
      const hidden = new Float32Array(batch * width);
      for (let row = 0; row < batch; row++) hidden[row * width + 5] = 1;
      // rms of a row is 1 / 8.
      const norm = { weight: fixture.input(new Float32Array(width).fill(1), [width]).tensor, eps: 0 };
      const weight = denseWeight(fixture.input(table, [vocab, width]).tensor);
      const x = fixture.input(hidden, [batch, width]).tensor;
      const room = fixture.output("float32", [batch, vocab]);
      const slot: SlotParams = { temperature: 1.5, seed: [77, 5] };
      const counts = countDraws(
        fixture,
        slot,
        (out, samples, slots) => fixture.backend.drawTokens(out, x, { weight, norm }, room, samples, slots),
        { draws, batch, vocab },
      );
      expectDistributed(counts, slot, logits);
    },
    "grid",
  );
}
