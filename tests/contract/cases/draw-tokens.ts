import { expect } from "bun:test";
import { denseWeight } from "../../../src/backend/weight.ts";
import { NotDrawn } from "../../../src/base/not-drawn.ts";
import type { Case } from "../backend.contract.ts";
import { expectEqual } from "../compare.ts";
import type { Fixture } from "../fixture.ts";
import { type SlotParams, sampleRows, slotTensors } from "../slot-table.ts";

const EPS = 1e-6;

/** Rows, vocabulary and hidden size: few rows and many, vocabularies of whole tiles and others. */
const SHAPES = [
  [1, 1, 1],
  [1, 7, 64],
  [8, 130, 1024],
  [9, 2160, 256],
] as const;
/** The same of whole tiles of kernels for few tokens and for many, and of more than one. */
const GRID_SHAPES = [
  [1, 2160, 256],
  [3, 2160, 512],
  [2, 2160, 608],
  [8, 4240, 256],
  [9, 2176, 320],
  [64, 5003, 130],
  [64, 2176, 256],
  [65, 1152, 192],
  [130, 2176, 64],
  [256, 1025, 64],
  [256, 2176, 256],
  [300, 1152, 128],
] as const;

const counting = (length: number) => Array.from({ length }, (_, i) => i);

/** Greedy, cold, plain and hot slots in turn, each with a history of its own length; the last one is vacant. */
function plainSlots(count: number): SlotParams[] {
  return counting(count).map((i): SlotParams => {
    if (i === count - 1 && i > 0) return { temperature: 0 };
    const temperature = [0, 0.3, 1, 1.7][i % 4]!;
    // What temperature 0 makes void does not count as a filter.
    const void0 = temperature === 0 ? { topK: 3, topP: 0.5, minP: 0.1 } : {};
    return { ...void0, temperature, seed: [i * 7 + 3, 11], tokens: counting(1 + (i % 5)) };
  });
}

interface Head {
  readonly hidden: Float32Array;
  readonly vocab: number;
  readonly width: number;
  readonly softCap?: number;
}

/** Draws with `draw`, on slots and memory of its own; everything that may differ between two ways of drawing. */
function drawn(
  fixture: Fixture,
  params: readonly SlotParams[],
  { hidden, vocab, width, softCap }: Head,
  weights: { readonly table: Float32Array; readonly norm: Float32Array },
  fused: boolean,
) {
  const rows = params.length;
  const { backend } = fixture;
  const slots = slotTensors(fixture, params, { vocab });
  const order = counting(rows).map((i) => rows - 1 - i);
  const samples = sampleRows(
    fixture,
    order,
    order.map((slot) => 5 + slot),
  );
  const x = fixture.input(hidden, [rows, width]).tensor;
  const weight = denseWeight(fixture.input(weights.table, [vocab, width]).tensor);
  const norm = { weight: fixture.input(weights.norm, [width]).tensor, eps: EPS };
  const [out, logits] = [fixture.output("int32", [rows]), fixture.output("float32", [rows, vocab])];
  if (fused) backend.drawTokens(out, x, { weight, norm, softCap }, logits, samples, slots);
  else {
    backend.linear(logits, x, weight, { norm });
    if (softCap !== undefined) backend.capLogits(logits, softCap);
    backend.sample(out, logits, logits, samples, slots);
  }
  const [tokens, lengths] = [fixture.readInts(out), fixture.readInts(slots.lengths)];
  return { tokens, lengths, history: fixture.readInts(slots.tokens) };
}

export function drawTokensCases(addCase: Case): void {
  for (const shape of [...SHAPES, ...GRID_SHAPES]) {
    const [rows, vocab, width] = shape;
    addCase(
      "drawTokens",
      `${rows} rows, vocabulary of ${vocab}, ${width} wide: the tokens that sampling draws`,
      (fixture) => {
        const hidden = fixture.random.normals(rows * width, 2);
        const weights = {
          table: fixture.random.normals(vocab * width, 3 / Math.sqrt(width)),
          norm: fixture.random.normals(width, 0.3, 1),
        };
        const head = { hidden, vocab, width };
        const params = plainSlots(rows);
        const expected = drawn(fixture, params, head, weights, false);
        const actual = drawn(fixture, params, head, weights, true);
        expectEqual("tokens", actual.tokens, expected.tokens);
        expectEqual("lengths", actual.lengths, expected.lengths);
        expectEqual("history", actual.history, expected.history);
        // Rows that differ draw different tokens: nobody draws from the first row alone.
        if (rows >= 8 && vocab > 1000) expect(new Set(actual.tokens).size).toBeGreaterThan(rows / 4);
      },
      GRID_SHAPES.some((other) => other === shape) ? "grid" : undefined,
    );
  }

  for (const rows of [3, 5, 40]) {
    addCase("drawTokens", `${rows} rows of capped logits: the tokens that sampling draws`, (fixture) => {
      // Logits of some ±10 that a cap of 4 levels: what is drawn without it is something else.
      const [vocab, width] = rows === 5 ? [1001, 100] : [2176, 256];
      const hidden = fixture.random.normals(rows * width, 2);
      const weights = {
        table: fixture.random.normals(vocab * width, 3 / Math.sqrt(width)),
        norm: fixture.random.normals(width, 0.3, 1),
      };
      const params = counting(rows).map((i): SlotParams => ({ temperature: 1, seed: [i, 5], tokens: [1] }));
      const head = { hidden, vocab, width };
      const [expected, actual] = [false, true].map((fused) =>
        drawn(fixture, params, { ...head, softCap: 4 }, weights, fused),
      );
      expectEqual("tokens", actual!.tokens, expected!.tokens);
      const uncapped = drawn(fixture, params, head, weights, true);
      expect(uncapped.tokens).not.toEqual(actual!.tokens);
    });
  }

  for (const rows of [3, 9]) {
    addCase(
      "drawTokens",
      `${rows} rows: a NaN draws nothing and says so, equal logits give the lowest id`,
      (fixture) => {
        const [vocab, width] = [2176, 256];
        const hidden = fixture.random.normals(rows * width);
        hidden[width + 5] = Number.NaN;
        hidden.fill(0, 2 * width, 3 * width);
        const weights = {
          table: fixture.random.normals(vocab * width),
          norm: fixture.random.normals(width, 0.3, 1),
        };
        const params = counting(rows).map((): SlotParams => ({ temperature: 0, tokens: [4, 2] }));
        const { tokens, lengths } = drawn(fixture, params, { hidden, vocab, width }, weights, true);
        expect([...tokens.subarray(1, 3)]).toEqual([NotDrawn.notANumber, 0]);
        expect(tokens[0]).toBeGreaterThanOrEqual(0);
        // Row i draws for slot rows − 1 − i.
        expectEqual(
          "lengths",
          lengths,
          counting(rows).map((slot) => (slot === rows - 2 ? 2 : 3)),
        );
      },
    );
  }
}
