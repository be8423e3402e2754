import { resolveEngineConfig } from "../src/base/config.ts";
import {
  type EngineView,
  entriesOf,
  RUNNING_FIELDS,
  type RunningSequence,
  WAITING_FIELDS,
  type WaitingSequence,
} from "../src/base/engine-view.ts";
import { resolveSamplingParams } from "../src/base/sampling-params.ts";
import { checkRequest } from "../src/engine/request.ts";
import { type EngineOptions, LLM } from "../src/index.ts";
import { loadModel } from "../src/llm/load-model.ts";

/** An engine between two steps. */
export interface RecordedStep {
  readonly view: EngineView;
  readonly running: readonly RunningSequence[];
  readonly waiting: readonly WaitingSequence[];
}

/** A prompt of the embedded model that arrives before a step. */
export interface Arrival {
  readonly step: number;
  readonly prompt: string;
  readonly maxTokens: number;
}

/** Bytes of the embedded model's keys and values of a token, in float32: 6 layers, 2 heads of 64 dimensions. */
export const TOKEN_BYTES = 6 * 2 * 2 * 64 * 4;

/** The embedded model on the CPU, greedy, step by step until nothing is left to do: the state after each step. */
export async function recordEngine(
  arrivals: readonly Arrival[],
  options: EngineOptions,
): Promise<readonly RecordedStep[]> {
  const config = resolveEngineConfig({ device: "cpu", overlapScheduling: false, ...options });
  const loaded = await loadModel(undefined, config);
  try {
    const { engine, tokenizer } = loaded;
    const { limits } = engine;
    const steps: RecordedStep[] = [];
    const last = Math.max(...arrivals.map(({ step }) => step));
    for (let step = 0; step <= last || engine.hasUnfinished; step++) {
      for (const [i, { step: arrival, prompt, maxTokens }] of arrivals.entries()) {
        if (arrival !== step) continue;
        const params = { temperature: 0, ignoreEos: true, maxTokens };
        const sampling = resolveSamplingParams(params, { vocabSize: limits.vocabSize, maxLogprobs: 0 });
        const promptTokenIds = tokenizer!.encode(prompt);
        engine.add(checkRequest({ id: String(i), promptTokenIds, sampling, arrivalTime: step }, limits));
      }
      engine.step();
      const view = engine.view();
      const running = entriesOf(view.running, RUNNING_FIELDS);
      const waiting = entriesOf(view.waiting, WAITING_FIELDS);
      if (running.length + waiting.length > 0) steps.push({ view, running, waiting });
    }
    return steps;
  } finally {
    loaded.dispose();
  }
}

/** Tokens of prompts, and those of them that were found in the prefix cache, of requests one after another. */
export async function recordPrefixes(
  prompts: readonly string[],
): Promise<readonly { readonly tokens: number; readonly cached: number }[]> {
  await using llm = await LLM.create(undefined, { device: "cpu" });
  const rows: { tokens: number; cached: number }[] = [];
  for (const prompt of prompts) {
    const [output] = await llm.generate(prompt, { temperature: 0, maxTokens: 1 });
    rows.push({ tokens: output!.promptTokenIds.length, cached: output!.numCachedTokens });
  }
  return rows;
}

/** The likeliest next tokens of a text, and their probabilities, best first. */
export async function recordOdds(
  prompt: string,
  count: number,
): Promise<readonly { readonly token: string; readonly probability: number }[]> {
  await using llm = await LLM.create(undefined, { device: "cpu" });
  const [output] = await llm.generate(prompt, { temperature: 0, maxTokens: 1, logprobs: count });
  const [position] = output!.outputs[0]!.logprobs!;
  return [...position!.values()]
    .sort((a, b) => a.rank - b.rank)
    .slice(0, count)
    .map(({ decodedToken, logprob }) => ({ token: decodedToken, probability: Math.exp(logprob) }));
}
