import { describe, expect, setDefaultTimeout, test } from "bun:test";
import type { CapturedGraph } from "../../src/backend/backend.ts";
import { CpuBackend } from "../../src/backend/cpu/cpu-backend.ts";
import { Checkpoint } from "../../src/loader/checkpoint.ts";
import { loadWeights } from "../../src/loader/weights.ts";
import { readModelConfig } from "../../src/models/config.ts";
import { defineModel } from "../../src/models/registry.ts";
import { decodeBuckets } from "../../src/runner/graph-runner.ts";
import { kvLayout } from "../../src/runner/kv-layout.ts";
import { ModelRunner } from "../../src/runner/model-runner.ts";
import type {
  ScheduledBatch,
  ScheduledRow,
  SlotJoin,
  SlotSampling,
  StepResult,
} from "../../src/runner/types.ts";
import { fixture } from "./fixtures.ts";

setDefaultTimeout(300_000);

/** "Captures" by keeping the ops to call again: the same memory, the same order, no uploads. */
class RecordingBackend extends CpuBackend {
  readonly captured: number[] = [];
  replays = 0;
  /** How often memory that captured steps work in has moved. */
  moves = 0;

  capture(enqueue: () => void): CapturedGraph {
    this.captured.push(this.captured.length);
    const { moves } = this;
    return {
      isStale: () => this.moves !== moves,
      launch: () => {
        this.replays++;
        enqueue();
      },
      dispose: () => {},
    };
  }

  memory() {
    return { free: 2 ** 30, total: 2 ** 30 };
  }
}

const MODEL = fixture("qwen3");
const sampling: SlotSampling = {
  ...{ temperature: 0.8, topP: 0.95, topK: 50, minP: 0, repetitionPenalty: 1.1, presencePenalty: 0 },
  ...{ frequencyPenalty: 0, seed: 42n, logitBias: [], bannedTokens: [], bannedUntil: 0 },
  ...{ allowedTokenIds: undefined, badWords: [] },
};

async function startRunner(backend: CpuBackend, enforceEager: boolean): Promise<ModelRunner> {
  const config = readModelConfig(MODEL.modelDir);
  const definition = defineModel(config);
  using checkpoint = Checkpoint.open(MODEL.modelDir);
  const { parameters, ignored } = definition;
  const weights = await loadWeights(checkpoint, parameters, backend, { dtype: "float32", ignored });
  const model = definition.build(weights, backend, 256);
  return new ModelRunner(backend, model, {
    ...{ maxNumSeqs: 6, maxModelLen: 256, maxNumBatchedTokens: 128, blockSize: 16, enforceEager },
    ...{ kvDtype: "float32", maxLogprobs: 20, layout: kvLayout(definition.cachedLayers, 256) },
    planBlocks: () => 96,
  });
}

/**
 * Prompts of 5, 17 and 30 tokens in slots 0, 2 and 5; then `steps` decode steps of all three, of which slot 2 asks for the
 * log-probabilities of `topCount` tokens.
 */
function runSteps(runner: ModelRunner, steps: number, topCount?: number): StepResult[] {
  const slots = [0, 2, 5];
  const lengths = [5, 17, 30];
  const blocksPerSlot = 8;
  const prefill: ScheduledBatch = {
    joins: slots.map((slot, i) => {
      const tokens = Int32Array.from({ length: lengths[i]! }, (_, t) => (t * 7 + slot * 31) % 384);
      return {
        ...{ slot, tokens, promptLength: tokens.length, numComputedTokens: 0 },
        sampling: { ...sampling, seed: BigInt(slot) },
      };
    }),
    blockTableUpdates: slots.flatMap((slot, i) =>
      Array.from({ length: blocksPerSlot }, (_, index) => ({
        group: 0,
        slot,
        index,
        block: i * blocksPerSlot + index,
      })),
    ),
    rows: slots.map((slot, i) => ({ slot, count: lengths[i]!, sample: true })),
    decodeRows: 0,
    numTokens: 52,
  };
  runner.launch(prefill);
  const results = [runner.collect()];
  for (let step = 0; step < steps; step++) {
    runner.launch({
      ...{ joins: [], blockTableUpdates: [], decodeRows: 3, numTokens: 3 },
      rows: slots.map((slot) => ({
        ...{ slot, count: 1, sample: true },
        ...(slot === 2 && topCount !== undefined && { logprobs: topCount }),
      })),
    });
    results.push(runner.collect());
  }
  return results;
}

/** Sequences that join one after the other, five times over: a prompt beside those that decode, then a step of all. */
function runMixedSteps(runner: ModelRunner): StepResult[] {
  const results: StepResult[] = [];
  const step = (rows: ScheduledRow[], joins: SlotJoin[] = []) => {
    runner.launch({
      ...{ joins, rows, decodeRows: rows.filter(({ count }) => count === 1).length },
      blockTableUpdates: joins.flatMap(({ slot }) =>
        Array.from({ length: 4 }, (_, index) => ({ slot, group: 0, index, block: 4 * slot + index })),
      ),
      numTokens: rows.reduce((sum, { count }) => sum + count, 0),
    });
    results.push(runner.collect());
  };
  for (let round = 0; round < 5; round++) {
    const slots: number[] = [];
    for (const slot of [3, 0, 5, 1, 4]) {
      const length = 2 + ((7 * slot + 11 * round) % 31);
      const tokens = Int32Array.from({ length }, (_, t) => (t * 7 + slot * 31 + round * 5) % 384);
      const join = { slot, tokens, promptLength: length, numComputedTokens: 0 };
      const decode = slots.map((other) => ({ slot: other, count: 1, sample: true }));
      step(
        [...decode, { slot, count: length, sample: true, ...(round > 3 && { logprobs: 3 }) }],
        [{ ...join, sampling: { ...sampling, seed: BigInt(slot) } }],
      );
      slots.push(slot);
      step(slots.map((other) => ({ slot: other, count: 1, sample: true })));
    }
  }
  return results;
}

function drawTokens(runner: ModelRunner, steps: number): number[][] {
  return runSteps(runner, steps).map(({ tokens }) => [...tokens]);
}

describe("captured decode steps", () => {
  test("replay draws the same tokens as eager execution, padding included", async () => {
    const recording = new RecordingBackend();
    const eager = await startRunner(new CpuBackend(), true);
    const captured = await startRunner(recording, false);
    expect(recording.captured.length).toBe(decodeBuckets(6).length);
    const expected = drawTokens(eager, 40);
    expect(drawTokens(captured, 40)).toEqual(expected);
    expect(recording.replays).toBe(40);
    expect(new Set(expected.flat()).size).toBeGreaterThan(20);
    eager.dispose();
    captured.dispose();
  });

  test("log-probabilities are those of eager execution, beside rows that do not ask", async () => {
    const recording = new RecordingBackend();
    const eager = await startRunner(new CpuBackend(), true);
    const captured = await startRunner(recording, false);
    for (const topCount of [0, 5]) {
      const results = runSteps(captured, 10, topCount);
      expect(results).toEqual(runSteps(eager, 10, topCount));
      expect(results.at(-1)!.logprobs.get(1)!.topIds).toHaveLength(topCount);
      expect(results.at(-1)!.logprobs.size).toBe(1);
    }
    expect(recording.replays).toBe(20);
    eager.dispose();
    captured.dispose();
  });

  test("prompts, padded where they are alone, draw what they draw op by op", async () => {
    const recording = new RecordingBackend();
    const eager = await startRunner(new CpuBackend(), true);
    const captured = await startRunner(recording, false);
    const results = [captured, eager].map((runner) => runMixedSteps(runner));
    expect(results[0]).toEqual(results[1]!);
    // Of each five pairs of steps all but the first have decode rows; the first prompt of all comes for the first time.
    expect(recording.replays).toBe(5 * 5 + 5 - 1);
    expect(new Set(results[0]!.flatMap(({ tokens }) => [...tokens])).size).toBeGreaterThan(20);
    eager.dispose();
    captured.dispose();
  });

  test("a prompt longer than the batch is wide can be asked about once steps are captured", async () => {
    const runner = await startRunner(new RecordingBackend(), false);
    const tokens = Int32Array.from({ length: 30 }, (_, t) => t);
    runner.launch({
      joins: [{ slot: 0, tokens, promptLength: 30, numComputedTokens: 0, sampling }],
      blockTableUpdates: [0, 1].map((index) => ({ slot: 0, group: 0, index, block: index })),
      rows: [{ slot: 0, count: 30, sample: false, promptLogprobs: 2, logits: true }],
      ...{ decodeRows: 0, numTokens: 30 },
    });
    const { promptLogprobs, logits } = runner.collect();
    expect(promptLogprobs.get(0)!.chosenIds).toEqual(tokens.slice(1));
    expect(logits.get(0)).toHaveLength(30 * runner.vocabSize);
    runner.dispose();
  });

  test("a step whose memory the backend has moved is captured anew", async () => {
    const recording = new RecordingBackend();
    const eager = await startRunner(new CpuBackend(), true);
    const captured = await startRunner(recording, false);
    const expected = drawTokens(eager, 5);
    expect(drawTokens(captured, 5)).toEqual(expected);
    const before = recording.captured.length;
    recording.moves++;
    expect(drawTokens(captured, 5)).toEqual(drawTokens(eager, 5));
    expect(recording.captured.length).toBe(before + 1);
    eager.dispose();
    captured.dispose();
  });

  test("enforceEager captures nothing", async () => {
    const recording = new RecordingBackend();
    (await startRunner(recording, true)).dispose();
    expect(recording.captured).toEqual([]);
  });

  test("buckets cover every batch size with little waste", () => {
    for (const most of [1, 2, 6, 16, 100, 256, 1000]) {
      const buckets = decodeBuckets(most);
      expect(buckets.at(-1)).toBe(most);
      expect(new Set(buckets).size).toBe(buckets.length);
      for (let rows = 1; rows <= most; rows++) {
        const bucket = buckets.find((size) => size >= rows)!;
        expect(bucket - rows).toBeLessThan(Math.max(4, rows <= 16 ? 8 : 64));
      }
    }
  });
});
