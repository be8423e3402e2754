import type { EngineConfig } from "../base/config.ts";
import type { EngineStats } from "../base/engine-stats.ts";
import type { EngineView } from "../base/engine-view.ts";
import { EngineDeadError, ReplicaDeadError } from "../base/errors.ts";
import { SplitMix64 } from "../base/random.ts";
import type { LoadProgress } from "../llm/load-model.ts";
import { RequestStream, type StreamedPrompt } from "../llm/request-stream.ts";
import { EngineClient, type LoadListeners, type StepReport } from "./engine-client.ts";
import { type Place, Placement } from "./placement.ts";
import type { EngineInfo } from "./worker-protocol.ts";

/** An engine that has work and finishes no step for so many seconds is taken for stuck. */
export const STALL_SECONDS = 30;

/** One of the engines of an `AsyncLLM`, each with a copy of the model. */
export interface Replica {
  /** Counters and gauges as of its latest step. */
  readonly stats: EngineStats;
  readonly cacheConfig: EngineInfo["cacheConfig"];
  /** The error that it died of; undefined while it lives. */
  readonly failure: EngineDeadError | undefined;
  /** Seconds since it last finished a step while it has work; 0 when idle. */
  readonly secondsWithoutProgress: number;
  /** Its blocks and queues between two of its steps. @throws EngineDeadError */
  view(): Promise<EngineView>;
}

/** The model of each replica and their number. */
export interface ReplicaSetOptions {
  readonly model: string | undefined;
  readonly config: EngineConfig;
  readonly count: number;
}

/**
 * The main thread's side of the engine workers: places each request on one of them, all of its completions together. One
 * that dies takes its own requests with it, and what was submitted together with them; later ones go to the living. A
 * replica that is stuck gets no requests while another is not.
 */
export class ReplicaSet {
  /** The first replica's, but for `limits`, which are those of all. */
  readonly info: EngineInfo;
  /** The error that the last of the engines died of, or the reason of their closing; undefined while one lives. */
  failure: EngineDeadError | undefined;
  readonly #placement: Placement;
  /** Seeds of requests that bring none: they do not depend on where a request runs. */
  readonly #seeds: SplitMix64;

  /**
   * Loads a model in new Workers, one for each replica. Only the first downloads it.
   * @throws what `EngineClient.start` throws for the first of them that fails; all Workers have ended then.
   */
  static async start(
    url: URL,
    { model, config, count }: ReplicaSetOptions,
    { onProgress, onFolder }: LoadListeners = {},
  ): Promise<ReplicaSet> {
    const found = Promise.withResolvers<string>();
    const cancel = new AbortController();
    const progress = onProgress && summed(count, onProgress);
    const startOne = (replica: number, source: string | undefined, told?: (folder: string) => void) => {
      const gpuIndex = config.gpuIndex + replica * config.tensorParallelSize;
      return EngineClient.start(
        url,
        { model: source, config: { ...config, gpuIndex } },
        { onProgress: progress?.(replica), onFolder: told, signal: cancel.signal },
      );
    };
    const first = startOne(0, model, (folder) => {
      found.resolve(folder);
      onFolder?.(folder);
    });
    const starting = Array.from({ length: count }, async (_, replica) => {
      if (replica === 0) return first;
      return startOne(replica, await Promise.race([found.promise, first.then(() => model)]));
    });
    try {
      const engines = await Promise.all(starting);
      // One may have died while the others were loading.
      const dead = engines.find(({ failure }) => failure);
      if (dead) throw dead.failure;
      return new ReplicaSet(engines, config);
    } catch (error) {
      cancel.abort(error);
      const reason = new EngineDeadError("the model could not be loaded", { cause: error });
      const settled = await Promise.allSettled(starting);
      const loaded = settled.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
      await Promise.all(loaded.map((engine) => engine.close(reason)));
      throw error;
    }
  }

  private constructor(
    private readonly engines: readonly EngineClient[],
    config: EngineConfig,
  ) {
    const infos = engines.map(({ info }) => info);
    const least = (name: "maxModelLen" | "poolTokens") =>
      Math.min(...infos.map(({ limits }) => limits[name]));
    const [first] = infos;
    const limits = { ...first!.limits, maxModelLen: least("maxModelLen"), poolTokens: least("poolTokens") };
    this.info = { ...first!, limits };
    // A prefix has blocks in each group of layers.
    const capacities = infos.map(({ cacheConfig: { numBlocks, numGroups = 1, numSnapshots } }) =>
      config.enablePrefixCaching && numSnapshots !== 0 ? Math.floor(numBlocks / numGroups) : 0,
    );
    this.#placement = new Placement(capacities, first!.cacheConfig.blockSize);
    this.#seeds = new SplitMix64(config.seed);
    for (const [replica, engine] of engines.entries())
      engine.onDeath = (failure) => this.#died(replica, failure);
  }

  get replicas(): readonly Replica[] {
    return this.engines;
  }

  /** Sums over the replicas; `kvUsage` is the share of all blocks of those that live. */
  get stats(): EngineStats {
    const all = this.engines.map(({ stats }) => stats);
    const sum = (read: (stats: EngineStats) => number) =>
      all.reduce((total, stats) => total + read(stats), 0);
    const living = this.#living;
    const blocks = living.reduce((total, { cacheConfig }) => total + cacheConfig.numBlocks, 0);
    const used = living.reduce(
      (total, { stats, cacheConfig }) => total + stats.kvUsage * cacheConfig.numBlocks,
      0,
    );
    return {
      running: sum((stats) => stats.running),
      waiting: sum((stats) => stats.waiting),
      kvUsage: blocks === 0 ? 0 : used / blocks,
      cachedBlocks: sum((stats) => stats.cachedBlocks),
      steps: sum((stats) => stats.steps),
      preemptions: sum((stats) => stats.preemptions),
      prefixQueries: sum((stats) => stats.prefixQueries),
      prefixHits: sum((stats) => stats.prefixHits),
      promptTokens: sum((stats) => stats.promptTokens),
      generationTokens: sum((stats) => stats.generationTokens),
    };
  }

  /** Of the living replica that does best: 0 while one is idle or there is none. */
  get secondsWithoutProgress(): number {
    const living = this.#living.map((engine) => engine.secondsWithoutProgress);
    return living.length === 0 ? 0 : Math.min(...living);
  }

  /**
   * Queues requests together, each where it is placed. Their arrival times are on this thread's clock.
   * @throws EngineDeadError
   */
  add(
    prompts: readonly StreamedPrompt[],
    { signal, onEnd }: { readonly signal?: AbortSignal | undefined; readonly onEnd?: () => void } = {},
  ): RequestStream {
    this.assertAlive();
    const places = new Map<string, Place>();
    const placed = prompts.map((prompt) => this.#place(prompt, places));
    const isAborted = signal?.aborted === true;
    const stream = new RequestStream(placed, {
      signal,
      abort: (ids) => {
        if (!isAborted) this.#abort(ids, places);
      },
      onEnd: ({ id }) => {
        places.get(id)!.release();
        onEnd?.();
      },
    });
    for (const [replica, requests] of Map.groupBy(stream.requests, ({ replica }) => replica))
      this.engines[replica]!.add(stream, requests, isAborted);
    return stream;
  }

  /** False when requests are running on a replica, which then forgets nothing. @throws EngineDeadError */
  async resetPrefixCache(): Promise<boolean> {
    this.assertAlive();
    const results = this.engines.map(async (engine, replica) => {
      if (engine.failure) return true;
      const done = await engine.resetPrefixCache().catch((error: unknown) => {
        if (this.failure) throw error;
        return true;
      });
      if (done) this.#placement.forget(replica);
      return done;
    });
    return (await Promise.all(results)).every((done) => done);
  }

  /** Calls `listener` for every step of a replica from now on. @returns a function that ends the calls. */
  onStep(listener: (report: StepReport) => void): () => void {
    const ends = this.engines.map((engine, replica) =>
      engine.onStep((report) => listener({ ...report, replica })),
    );
    return () => {
      for (const end of ends) end();
    };
  }

  assertAlive(): void {
    if (this.failure) throw new EngineDeadError(this.failure.message, { cause: this.failure });
  }

  /** Ends everything with `reason`, frees the devices and ends the Workers. Safe to call twice. */
  async close(reason: EngineDeadError): Promise<void> {
    this.failure ??= reason;
    await Promise.all(this.engines.map((engine) => engine.close(reason)));
  }

  get #living(): readonly EngineClient[] {
    return this.engines.filter(({ failure }) => !failure);
  }

  #place({ request, prompt }: StreamedPrompt, places: Map<string, Place>): StreamedPrompt {
    const gets = ({ failure, secondsWithoutProgress }: EngineClient) =>
      !failure && secondsWithoutProgress < STALL_SECONDS;
    const eligible = this.engines.some(gets) ? gets : ({ failure }: EngineClient) => !failure;
    const place = this.#placement.place(request, (replica) => eligible(this.engines[replica]!));
    const { replica } = place;
    places.set(request.id, place);
    const { sampling } = request;
    const seeded = { ...sampling, seed: sampling.seed ?? this.#seeds.next() };
    const arrivalTime = this.engines[replica]!.engineTime(request.arrivalTime);
    return { request: { ...request, sampling: seeded, arrivalTime }, prompt, replica };
  }

  #abort(ids: readonly string[], places: ReadonlyMap<string, Place>): void {
    for (const [replica, its] of Map.groupBy(ids, (id) => places.get(id)!.replica)) {
      const engine = this.engines[replica]!;
      if (!engine.failure) engine.abort(its);
    }
  }

  /** @returns the error of the replica's requests. */
  #died(replica: number, failure: EngineDeadError): EngineDeadError {
    if (this.failure) return this.failure;
    this.#placement.forget(replica);
    if (this.#living.length > 0) return new ReplicaDeadError(replica, failure);
    this.failure = failure;
    return failure;
  }
}

/** Listeners, one for each replica, that tell `onProgress` of all: they read the same files. */
function summed(count: number, onProgress: (progress: LoadProgress) => void) {
  const loaded = new Array<number>(count).fill(0);
  return (replica: number) => (progress: LoadProgress) => {
    if (progress.phase === "download") return onProgress(progress);
    loaded[replica] = progress.loadedBytes;
    const loadedBytes = loaded.reduce((total, bytes) => total + bytes, 0);
    onProgress({ phase: progress.phase, loadedBytes, totalBytes: progress.totalBytes * count });
  };
}
