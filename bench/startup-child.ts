/**
 * One start, for startup.ts: loads a model, generates one token and prints when each phase ended, as JSON.
 * Argument: JSON of `StartupTask`.
 */
import type { Backend } from "../src/backend/backend.ts";
import { type EngineOptions, resolveEngineConfig } from "../src/base/config.ts";
import { resolveSamplingParams } from "../src/base/sampling-params.ts";
import { checkRequest } from "../src/engine/request.ts";
import { loadModel } from "../src/llm/load-model.ts";
import { createBackend, type OpenBackend } from "../src/llm/open-backend.ts";

export interface StartupTask {
  readonly model?: string;
  readonly options: EngineOptions;
}

/** Unix time in milliseconds at the end of each phase, in their order. */
export type PhaseEnds = readonly (readonly [phase: string, at: number])[];

if (import.meta.main) {
  const task = JSON.parse(process.argv[2]!) as StartupTask;
  console.log(JSON.stringify(await start(task)));
  process.exit(0);
}

/**
 * Phases in which nothing happens on this backend are left out.
 * @param open default `createBackend`; replaceable, so that tests need no GPU
 */
export async function start(
  { model, options }: StartupTask,
  open: OpenBackend = createBackend,
): Promise<PhaseEnds> {
  const ends: [string, number][] = [];
  const end = (phase: string) => {
    if (!ends.some(([known]) => known === phase))
      ends.push([phase, performance.timeOrigin + performance.now()]);
  };
  end("process");
  const openBackend: OpenBackend = async (...args) => {
    const backend = await open(...args);
    end("tokenizer, libraries");
    return observe(backend, end);
  };
  const loaded = await loadModel(model, resolveEngineConfig(options), { openBackend });
  end(loaded.device === "cuda" && !options.enforceEager ? "graphs" : "load");

  const limits = { vocabSize: loaded.modelConfig.vocabSize, maxLogprobs: 0 };
  const sampling = resolveSamplingParams({ temperature: 0, maxTokens: 1 }, limits, {});
  const draft = { id: "0", promptTokenIds: [1, 2, 3, 4], sampling, arrivalTime: performance.now() / 1000 };
  loaded.engine.add(checkRequest(draft, loaded.engine.limits));
  while (loaded.engine.step().deltas.length === 0);
  end("first token");
  loaded.dispose();
  return ends;
}

/**
 * Tells the phases of loading apart by the calls that begin and end them: free memory is first asked for when the weights
 * are there, tuning follows the warm-up step, and graphs come last.
 */
function observe(backend: Backend, end: (phase: string) => void): Backend {
  return new Proxy(backend, {
    get: (_, name) => {
      const value: unknown = Reflect.get(backend, name, backend);
      if (typeof value !== "function") return value;
      return (...args: unknown[]): unknown => {
        if (name === "memory") end("weights, kernels");
        if (name === "tuneLinear") end("warm-up");
        if (name === "capture") end("KV cache");
        const result: unknown = Reflect.apply(value, backend, args);
        if (name === "tuneLinear") end("matrix tuning");
        return result;
      };
    },
  });
}
