import { type EngineConfig, type EngineOptions, resolveEngineConfig } from "../src/base/config.ts";
import { resolveSamplingParams } from "../src/base/sampling-params.ts";
import { checkRequest, type EngineRequest } from "../src/engine/request.ts";
import { type LoadedModel, loadModel } from "../src/llm/load-model.ts";
import { createBackend, type OpenBackend } from "../src/llm/open-backend.ts";
import { OpenRequests } from "../src/llm/open-requests.ts";
import { readOutputs } from "../src/llm/read-stream.ts";
import { StepLoop } from "../src/llm/step-loop.ts";
import type { ModelConfig } from "../src/models/config.ts";
import {
  type ClassTime,
  type DecodeProfiles,
  type OpClass,
  Profiler,
  type StepTime,
  timeByClass,
} from "./profiling-backend.ts";
import { asLoaded, type DeviceLimits, decodeLimit, kvElementBytes } from "./roofline.ts";
import { median, percentile, sum } from "./stats.ts";
import { checkOutputs, type NamedWorkload, samplingOf, streams } from "./workload.ts";

/** Decode steps that are timed, half of them op by op. */
const DECODE_STEPS = 24;
/** Steps after the prompts that are not timed: they still hold prompt tokens, or are not at full speed yet. */
const SETTLING_STEPS = 4;
/** The mean context of nano-vLLM's workload while all of it runs. */
const CONTEXT_TOKENS = 660;

/** How long the GPU waited between the steps of a workload. Copies count as waiting. */
export interface IdleTimes {
  readonly workload: string;
  readonly steps: number;
  /** Microseconds between the end of a step and the start of the next. */
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  /** Seconds of all steps, and between them. */
  readonly busySeconds: number;
  readonly idleSeconds: number;
}

/** What a decode step's time goes to. */
export interface DecodeShares {
  /** Sequences, and the tokens that each has in the cache. */
  readonly batch: number;
  readonly contextTokens: number;
  /** Milliseconds of the step as it runs, and op by op: the latter keeps apart what overlaps in a graph. */
  readonly graphMilliseconds: number;
  readonly opMilliseconds: number;
  /** Reading the weights and the keys and values once, where the GPU's limits are known. */
  readonly limitMilliseconds?: number;
  /** Op-by-op steps behind the figures, medians all. */
  readonly samples: number;
  readonly classes: readonly ClassShare[];
}

export interface ClassShare extends ClassTime {
  /** Of `opMilliseconds`, 0–1. */
  readonly share: number;
  /** Of all ops of the class, for those that read weights, keys or values. */
  readonly limitMilliseconds?: number;
}

export interface Profile {
  readonly idle: readonly IdleTimes[];
  /** Empty when no graphs are captured. */
  readonly decode: readonly DecodeShares[];
}

export interface ProfileOptions {
  /** What stands beside the times. */
  readonly limits?: DeviceLimits;
  /** Default `createBackend`; replaceable, so that tests need no GPU. */
  readonly openBackend?: OpenBackend;
}

/** A model whose backend has timestamps. The caller disposes of `loaded`. */
export async function loadProfiled(
  model: string | undefined,
  config: EngineConfig,
  openBackend: OpenBackend = createBackend,
): Promise<{ readonly loaded: LoadedModel; readonly profiler: Profiler }> {
  const profiler = new Profiler();
  const loaded = await loadModel(model, config, {
    openBackend: async (...args) => profiler.wrap(await openBackend(...args)),
  });
  return { loaded, profiler };
}

/** Loads the model once more, with timestamps, and runs the workloads on it. Needs a GPU. */
export async function profile(
  model: string | undefined,
  options: EngineOptions,
  workloads: readonly NamedWorkload[],
  batches: readonly number[],
  { limits, openBackend }: ProfileOptions = {},
): Promise<Profile> {
  const config = resolveEngineConfig(options);
  const { loaded, profiler } = await loadProfiled(model, config, openBackend);
  try {
    const decode = config.enforceEager
      ? []
      : batches.map((batch) => {
          const shares = decodeShares(loaded, profiler, Math.min(batch, config.maxNumSeqs));
          const model = asLoaded(loaded.modelConfig, config);
          return limits ? besideLimit(shares, model, limits, kvElementBytes(config)) : shares;
        });
    // One loop steps the engine: a second would take its deltas.
    const open = new OpenRequests();
    const loop = new StepLoop(loaded.engine, open);
    const idle: IdleTimes[] = [];
    for (const workload of [streams(1, 32, 8), ...workloads]) {
      const steps = await profiler.steps(() => generate(loaded, loop, open, workload));
      idle.push(idleTimes(workload.name, steps));
    }
    // The first was there to warm up.
    return { idle: idle.slice(1), decode };
  } finally {
    loaded.dispose();
  }
}

export function idleTimes(workload: string, steps: readonly StepTime[]): IdleTimes {
  const waits = steps.flatMap(({ idle }) => (idle === undefined ? [] : [1000 * idle]));
  return {
    workload,
    steps: steps.length,
    p50: percentile(waits, 0.5),
    p99: percentile(waits, 0.99),
    max: percentile(waits, 1),
    busySeconds: sum(steps.map(({ busy }) => busy)) / 1000,
    idleSeconds: sum(waits) / 1e6,
  };
}

/** The medians over steps of the same batch. */
export function summarize(
  batch: number,
  contextTokens: number,
  { eager, graph }: DecodeProfiles,
): DecodeShares {
  const full = eager
    .filter(({ rows }) => rows === Math.max(...eager.map((step) => step.rows)))
    .map(timeByClass);
  if (full.length === 0) throw new Error("the host was too slow for every op-by-op step");
  const classes = full[0]!
    .map(({ class: name, ops }) => {
      const times = full.map((step) => step.find((entry) => entry.class === name)?.milliseconds ?? 0);
      return { class: name, ops, milliseconds: median(times) };
    })
    .sort((a, b) => b.milliseconds - a.milliseconds);
  const opMilliseconds = sum(classes.map(({ milliseconds }) => milliseconds));
  return {
    ...{ batch, contextTokens, opMilliseconds },
    graphMilliseconds: median(graph),
    samples: full.length,
    classes: classes.map((entry) => ({ ...entry, share: entry.milliseconds / opMilliseconds })),
  };
}

function besideLimit(
  shares: DecodeShares,
  model: ModelConfig,
  limits: DeviceLimits,
  kvBytes: number,
): DecodeShares {
  const contexts = Array<number>(shares.batch).fill(shares.contextTokens);
  const limit = decodeLimit(model, contexts, limits, kvBytes);
  const known = new Map<OpClass, number>([
    ["linear", limit.layers],
    ["experts", limit.experts],
    ["attention", limit.attention],
    ["delta rule", limit.states],
    ["LM head", limit.head],
  ]);
  const classes = shares.classes.map((entry) => {
    const seconds = known.get(entry.class);
    return { ...entry, ...(seconds !== undefined && { limitMilliseconds: 1000 * seconds }) };
  });
  return { ...shares, limitMilliseconds: 1000 * limit.step, classes };
}

/** Steps the engine by hand: prompts first, then decode steps of the whole batch. */
export function decodeShares(
  loaded: LoadedModel,
  profiler: Profiler,
  batch: number,
  promptTokens = CONTEXT_TOKENS,
): DecodeShares {
  const { engine } = loaded;
  const { maxModelLen } = engine.limits;
  const prompt = Math.min(promptTokens, maxModelLen - 2 * DECODE_STEPS);
  // Prompts take many steps, in which those that came first decode already.
  const workload = streams(batch, prompt, maxModelLen - prompt);
  const requests = requestsOf(loaded, workload);
  for (const request of requests) engine.add(request);
  const before = engine.stats();
  while (engine.stats().promptTokens - before.promptTokens < batch * prompt) engine.step();
  for (let i = 0; i < SETTLING_STEPS; i++) engine.step();
  const profiles = profiler.decode(() => {
    for (let i = 0; i < DECODE_STEPS; i++) engine.step();
  });
  const generated = engine.stats().generationTokens - before.generationTokens;
  const contextTokens = Math.round(prompt + generated / batch);
  for (const { id } of requests) engine.abort(id);
  while (engine.hasUnfinished) engine.step();
  engine.resetPrefixCache();
  return summarize(batch, contextTokens, profiles);
}

/** Runs a workload as `LLM.generate` does. */
async function generate(
  loaded: LoadedModel,
  loop: StepLoop,
  open: OpenRequests,
  workload: NamedWorkload,
): Promise<void> {
  const requests = requestsOf(loaded, workload);
  loop.add(requests);
  const prompts = requests.map((request) => ({ request, prompt: undefined }));
  const outputs = await readOutputs(open.open(prompts, { abort: (ids) => loop.abort(ids) }));
  while (loaded.engine.hasUnfinished) await Bun.sleep(1);
  loaded.engine.resetPrefixCache();
  checkOutputs(workload, outputs);
}

function requestsOf({ engine }: LoadedModel, workload: NamedWorkload): EngineRequest[] {
  const { limits } = engine;
  const arrivalTime = performance.now() / 1000;
  return samplingOf(workload).map((params, i) => {
    const sampling = resolveSamplingParams(params, { vocabSize: limits.vocabSize, maxLogprobs: 1 }, {});
    const { promptTokenIds } = workload.requests[i]!;
    return checkRequest({ id: `${workload.name} ${i}`, promptTokenIds, sampling, arrivalTime }, limits);
  });
}
