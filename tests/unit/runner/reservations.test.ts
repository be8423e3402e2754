import { expect, setDefaultTimeout, test } from "bun:test";
import type { CapturedGraph } from "../../../src/backend/backend.ts";
import { CpuBackend } from "../../../src/backend/cpu/cpu-backend.ts";
import type { DeviceBuffer } from "../../../src/backend/tensor.ts";
import { resolveEngineConfig } from "../../../src/base/config.ts";
import { DeviceError } from "../../../src/base/errors.ts";
import { MAX_BAD_WORD_TOKENS, MAX_LOGIT_EDITS } from "../../../src/base/sampling-params.ts";
import type { RequestDraft } from "../../../src/engine/request.ts";
import { type LoadedModel, loadModel } from "../../../src/llm/load-model.ts";
import { add, drain, makeRequest, range } from "../engine/helpers.ts";

setDefaultTimeout(300_000);

/** A GPU whose pool takes all memory that is left: later there is none. */
class FullBackend extends CpuBackend {
  isFull = false;
  replays = 0;

  memory() {
    return { free: 2 ** 30, total: 2 ** 30 };
  }

  override allocate(byteLength: number): DeviceBuffer {
    if (this.isFull) throw new DeviceError(`no memory for ${byteLength} bytes`);
    return super.allocate(byteLength);
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

async function load(backend: FullBackend, options: { maxLogprobs?: number } = {}): Promise<LoadedModel> {
  const config = resolveEngineConfig({
    ...{ device: "cpu", kvCacheMemoryBytes: 2 ** 24, maxNumSeqs: MAX_SEQS, maxNumBatchedTokens: MAX_TOKENS },
    ...{ skipTokenizerInit: true, maxModelLen: 80, ...options },
  });
  const model = await loadModel(undefined, config, { openBackend: () => backend });
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

test.each([20, -1])(
  "nothing is allocated whatever is asked for, log-probabilities up to %d",
  async (maxLogprobs) => {
    const backend = new FullBackend();
    const model = await load(backend, { maxLogprobs });
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
