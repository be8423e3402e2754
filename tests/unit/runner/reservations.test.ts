import { expect, setDefaultTimeout, test } from "bun:test";
import type { AttentionSpec } from "../../../src/backend/attention-spec.ts";
import type { BatchTensors, CapturedGraph, LayerCache } from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import type { DeviceBuffer, Tensor } from "../../../src/backend/tensor.ts";
import { type EngineOptions, resolveEngineConfig } from "../../../src/base/config.ts";
import { DeviceError } from "../../../src/base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../../src/base/sampling-params.ts";
import type { Engine } from "../../../src/engine/engine.ts";
import type { RequestDraft } from "../../../src/engine/request.ts";
import { type LoadedModel, loadModel } from "../../../src/llm/load-model.ts";
import { fixture } from "../../model/fixtures.ts";
import { add, drain, makeEngine, makeRequest, range } from "../engine/helpers.ts";
import { toyRunner } from "./toy-model.ts";

setDefaultTimeout(300_000);

/**
 * A GPU whose pool takes all memory that is left: later there is none. Attention has memory of its own for each layer's cache, in
 * decode steps and in others, and for steps of few rows.
 */
class FullBackend extends CpuBackend {
  isFull = false;
  replays = 0;
  readonly #decoded = new Set<DeviceBuffer>();
  readonly #prompted = new Set<DeviceBuffer>();
  #fewRows = 0;

  memory() {
    return { free: 2 ** 30, total: 2 ** 30 };
  }

  override allocate(byteLength: number): DeviceBuffer {
    if (this.isFull) throw new DeviceError(`no memory for ${byteLength} bytes`);
    return super.allocate(byteLength);
  }

  override attend(
    out: Tensor,
    qkv: Tensor,
    cache: LayerCache,
    batch: BatchTensors,
    spec: AttentionSpec,
  ): void {
    const { numRows, decodeRows } = batch;
    const isDecode = decodeRows === numRows;
    const caches = isDecode ? this.#decoded : this.#prompted;
    if (!caches.has(cache.keys.buffer)) this.allocate(256);
    caches.add(cache.keys.buffer);
    if (isDecode && numRows <= 8 && numRows > this.#fewRows) {
      this.#fewRows = numRows;
      this.allocate(256 * numRows);
    }
    super.attend(out, qkv, cache, batch, spec);
  }

  capture(enqueue: () => void): CapturedGraph {
    const launch = () => {
      this.replays++;
      enqueue();
    };
    return { launch, dispose: () => {} };
  }
}

const MAX_TOKENS = 24;
const MAX_SEQS = 3;

/** A model with few tokens to choose from, ten times as fast as the embedded one. */
const FAST_MODEL = fixture("qwen3").modelDir;

async function load(
  backend: FullBackend,
  options: EngineOptions = {},
  folder: string = FAST_MODEL,
): Promise<LoadedModel> {
  const config = resolveEngineConfig({
    ...{ device: "cpu", kvCacheMemoryBytes: 2 ** 24, maxNumSeqs: MAX_SEQS, maxNumBatchedTokens: MAX_TOKENS },
    ...{ skipTokenizerInit: true, maxModelLen: 80, ...options },
  });
  const model = await loadModel(folder, config, { openBackend: () => backend });
  backend.isFull = true;
  return model;
}

const many = (length: number) => Array.from({ length }, (_, i) => i + 1);

/** One of every kind of request, each at its largest. */
function requests(topCount: number): RequestDraft[] {
  const edits = many(MAX_LOGIT_EDITS).map((token) => [token, 0.5] as const);
  const badWordTokens = many(Math.floor(MAX_BAD_WORD_TOKENS / 4)).map((token) => [token, token + 1]);
  const penalties = { repetitionPenalty: 1.2, presencePenalty: 0.5, frequencyPenalty: 0.5 };
  const long = range(0, 60);
  return [
    makeRequest(long, { temperature: 0 }),
    makeRequest(long, { logprobs: topCount, promptLogprobs: topCount }),
    makeRequest(range(3, 30), { logprobs: topCount, ...penalties }),
    makeRequest(range(1, 7), { promptLogprobs: topCount }),
    makeRequest(long, { maxTokens: 0 }, { logits: true }),
    makeRequest(range(2, 20), { logitBias: edits, minTokens: 3 }),
    makeRequest(range(2, 20), { logprobs: 0 }, { badWordTokens }),
    makeRequest(range(2, 20), { allowedTokenIds: many(30), topK: 5, topP: 0.9, minP: 0.01 }),
    ...many(MAX_SEQS).map((i) => makeRequest([i], { logprobs: topCount, ...penalties })),
    ...many(MAX_SEQS).map((i) => makeRequest([i, i], { maxTokens: 6 })),
  ];
}

// Of a vocabulary that lists of the greatest length fit into.
test.each([20, -1])(
  "nothing is allocated whatever is asked for, log-probabilities up to %d",
  async (maxLogprobs) => {
    const backend = new FullBackend();
    const model = await load(backend, { maxLogprobs }, fixture("tiny-stories").modelDir);
    const { engine } = model;
    const topCount = maxLogprobs < 0 ? engine.limits.vocabSize : maxLogprobs;
    const asked = requests(topCount);
    for (const request of asked) add(engine, request);
    const outcomes = drain(engine);
    for (const { id } of asked) expect(outcomes.completion(id).error).toBeUndefined();
    expect(backend.replays).toBeGreaterThan(8);
    model.dispose();
  },
);

/** Prompts of these lengths, each alone, so that it can be a captured step: twice, as that is when it is captured. */
function runAlone(engine: Engine, lengths: readonly number[]): void {
  for (const length of lengths.flatMap((each) => [each, each])) {
    const request = makeRequest(range(length % 7, length), {
      maxTokens: 1,
      logprobs: length % 2 === 1 ? 1 : undefined,
    });
    add(engine, request);
    expect(drain(engine).completion(request.id).error).toBeUndefined();
  }
}

test.each([
  { maxNumSeqs: 1, maxModelLen: 200, lengths: [150, 100] },
  { maxNumSeqs: 1, maxModelLen: 40, lengths: [35] },
  { maxNumSeqs: 4, maxModelLen: 7, lengths: [5] },
])("nothing is allocated when prompts are padded: %j", async ({ lengths, ...limits }) => {
  const backend = new FullBackend();
  const model = await load(backend, { maxNumBatchedTokens: 16384, enablePrefixCaching: false, ...limits });
  runAlone(model.engine, lengths);
  expect(backend.replays).toBe(lengths.length);
  model.dispose();
});

test("steps of any size fit in what is reserved, and short prompts are captured", () => {
  for (const maxNumSeqs of [1, 12])
    for (const maxModelLen of [1, 2, 7, 130, 300])
      for (const maxNumBatchedTokens of [1, 3, 64, 255, 256, 4096]) {
        const limits = { maxNumSeqs, maxModelLen, maxNumBatchedTokens };
        const backend = new FullBackend();
        const runner = toyRunner(backend, { ...limits, planBlocks: () => 240, enforceEager: false });
        const { engine } = makeEngine({ ...limits, runner, enablePrefixCaching: false });
        backend.isFull = true;
        const lengths = [1, 2, 6, 32, 33, 64, 65, 128, 129, 256, 257, 299];
        const possible = lengths.filter((length) => length < maxModelLen);
        runAlone(engine, possible);
        // Longer than all buckets, or than the budget, so that no bucket is as long as they are.
        const bucket = [256, 128, 64, 32, 1].find((tokens) => tokens <= maxNumBatchedTokens)!;
        const captured = possible.filter((length) => length <= bucket);
        const message = JSON.stringify(limits);
        expect(backend.replays, message).toBeGreaterThanOrEqual(captured.length);
        for (let rows = 1; rows <= maxNumSeqs; rows++) {
          if (maxModelLen < 4) break;
          const together = many(rows).map((i) =>
            makeRequest(range(i, 1), { maxTokens: 2, logprobs: (rows + i) % 3 }),
          );
          for (const request of together) add(engine, request);
          const outcomes = drain(engine);
          for (const { id } of together) expect(outcomes.completion(id).error, message).toBeUndefined();
        }
        engine.dispose();
      }
});

test("steps of all numbers of rows find what they need", async () => {
  const backend = new FullBackend();
  const { engine, dispose } = await load(backend, { maxNumSeqs: 12, maxModelLen: 20 });
  for (let rows = 1; rows <= 12; rows++) {
    const together = many(rows).map((i) => makeRequest([i], { maxTokens: 2 }));
    for (const request of together) add(engine, request);
    const outcomes = drain(engine);
    for (const { id } of together) expect(outcomes.completion(id).error).toBeUndefined();
  }
  dispose();
});
