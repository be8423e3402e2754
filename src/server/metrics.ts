import { Counter, Gauge, Histogram, Registry } from "prom-client";
import type { AsyncLLM } from "../async/async-llm.ts";
import type { StepReport } from "../async/engine-client.ts";
import type { Replica } from "../async/replica-set.ts";
import type { FinishedRequest } from "../base/outputs.ts";

const LABELS = ["model_name", "engine"] as const;

/** Seconds: from a step on a fast GPU to a long reply on a CPU. */
const SECONDS = [
  ...[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600],
];
const TOKENS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000];
const COUNTS = [1, 2, 5, 10, 20, 50, 100, 128];

/** Gauges and counters that are read off the engine's statistics, under vLLM's names and the older ones. */
const GAUGES: readonly (readonly [name: string, help: string, read: (stats: Replica["stats"]) => number])[] =
  [
    ["num_requests_running", "Sequences that run.", (stats) => stats.running],
    ["num_requests_waiting", "Sequences that wait.", (stats) => stats.waiting],
    ["kv_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", (stats) => stats.kvUsage],
    ["gpu_cache_usage_perc", "Share of the KV cache in use, 0 to 1.", (stats) => stats.kvUsage],
  ];
const COUNTERS: typeof GAUGES = [
  ["prefix_cache_queries_total", "Prompt tokens looked up.", (stats) => stats.prefixQueries],
  ["prefix_cache_hits_total", "Prompt tokens found.", (stats) => stats.prefixHits],
  ["gpu_prefix_cache_queries_total", "Prompt tokens looked up.", (stats) => stats.prefixQueries],
  ["gpu_prefix_cache_hits_total", "Prompt tokens found.", (stats) => stats.prefixHits],
  ["num_preemptions_total", "Sequences put back to waiting.", (stats) => stats.preemptions],
  ["prompt_tokens_total", "Prompt tokens of started completions.", (stats) => stats.promptTokens],
  ["generation_tokens_total", "Tokens generated.", (stats) => stats.generationTokens],
];

type Times = FinishedRequest["metrics"];
const between = (from: number | undefined, to: number | undefined) =>
  from === undefined || to === undefined ? undefined : to - from;

/** Histograms of finished requests; a value that is undefined is not counted. */
const HISTOGRAMS: readonly (readonly [
  name: string,
  help: string,
  buckets: readonly number[],
  read: (request: FinishedRequest) => number | undefined,
])[] = [
  ["time_to_first_token_seconds", "Arrival to first token.", SECONDS, times("arrivalTime", "firstTokenTime")],
  ["e2e_request_latency_seconds", "Arrival to end.", SECONDS, times("arrivalTime", "finishedTime")],
  ["request_queue_time_seconds", "Arrival to start.", SECONDS, times("arrivalTime", "firstScheduledTime")],
  [
    "request_prefill_time_seconds",
    "Start to first token.",
    SECONDS,
    times("firstScheduledTime", "firstTokenTime"),
  ],
  ["request_decode_time_seconds", "First token to end.", SECONDS, times("firstTokenTime", "finishedTime")],
  ["request_inference_time_seconds", "Start to end.", SECONDS, times("firstScheduledTime", "finishedTime")],
  ["request_time_per_output_token_seconds", "Mean time between tokens.", SECONDS, timePerToken],
  ["request_prompt_tokens", "Tokens of the prompt.", TOKENS, (request) => request.promptTokens],
  ["request_generation_tokens", "Tokens generated.", TOKENS, (request) => request.generationTokens],
  [
    "request_prefill_kv_computed_tokens",
    "Prompt tokens not found in the prefix cache.",
    TOKENS,
    (request) => request.promptTokens - request.cachedTokens,
  ],
  ["request_params_n", "Completions asked for.", COUNTS, (request) => request.n],
  ["request_params_max_tokens", "max_tokens asked for.", TOKENS, (request) => request.maxTokens],
];

function times(from: keyof Times, to: keyof Times) {
  return ({ metrics }: FinishedRequest) => between(metrics[from], metrics[to]);
}

function timePerToken({ metrics, generationTokens, n }: FinishedRequest): number | undefined {
  const seconds = between(metrics.firstTokenTime, metrics.finishedTime);
  return seconds === undefined || generationTokens <= n ? undefined : (seconds * n) / (generationTokens - n);
}

/** Prometheus metrics of one server under vLLM's names, in a registry of its own. Each replica is an `engine`, as in vLLM. */
export class ServerMetrics implements Disposable {
  readonly #registry = new Registry();
  /** Of each replica. */
  readonly #labels: readonly Readonly<Record<(typeof LABELS)[number], string>>[];
  readonly #replicas: readonly Replica[];
  readonly #unsubscribe: () => void;
  /** Of each replica. */
  readonly #interToken: readonly Histogram.Internal<string>[];
  /** Of each replica. */
  readonly #longest: readonly Histogram.Internal<string>[];
  readonly #unknownFields: Counter<string>;
  readonly #requests: Counter<string>;
  readonly #interTokenListeners = new Set<(replica: number, seconds: number) => void>();

  constructor(llm: AsyncLLM, modelName: string) {
    this.#replicas = llm.replicas;
    this.#labels = llm.replicas.map((_, i) => ({ model_name: modelName, engine: String(i) }));
    for (const [name, help, read] of GAUGES) this.#gauge(`vllm:${name}`, help, ({ stats }) => read(stats));
    for (const [name, help, read] of COUNTERS) this.#counter(name, help, read);
    this.#gauge("vllm:num_requests_waiting_by_reason", "Sequences that wait.", ({ stats }) => stats.waiting, {
      reason: () => "capacity",
    });
    this.#gauge("vllm:engine_sleep_state", "1: in this state.", () => 1, { sleep_state: () => "awake" });
    this.#gauge("vllm:cache_config_info", "The KV cache.", () => 1, {
      block_size: ({ cacheConfig }) => cacheConfig.blockSize,
      num_gpu_blocks: ({ cacheConfig }) => cacheConfig.numBlocks,
      num_layer_groups: ({ cacheConfig }) => cacheConfig.numGroups ?? 1,
      num_states: ({ cacheConfig }) => cacheConfig.numStates ?? 0,
      num_state_snapshots: ({ cacheConfig }) => cacheConfig.numSnapshots ?? 0,
      cache_dtype: () => llm.config.kvCacheDtype,
      enable_prefix_caching: () => llm.config.enablePrefixCaching,
      gpu_memory_utilization: () => llm.config.gpuMemoryUtilization,
      tensor_parallel_size: () => llm.config.tensorParallelSize,
    });
    this.#gauge("octavo:weights_bytes", "Memory of the weights, by their form.", () => llm.weights.bytes, {
      format: () => llm.weights.format,
    });
    this.#gauge("octavo:replica_up", "1: the engine lives; 0: it has died.", ({ failure }) =>
      failure ? 0 : 1,
    );
    this.#interToken = this.#histogram("inter_token_latency_seconds", "Time between tokens.", SECONDS);
    this.#longest = this.#histogram(
      "request_max_num_generation_tokens",
      "Tokens of the longest completion.",
      TOKENS,
    );
    this.#requests = new Counter({
      ...{ name: "octavo:http_requests_total", help: "Requests by route and status." },
      ...{ labelNames: ["handler", "status"], registers: [this.#registry] },
    });
    // A family without samples makes some aggregators fail.
    this.#requests.inc({ handler: "/metrics", status: "200" }, 0);
    this.#unknownFields = new Counter({
      ...{ name: "octavo:unknown_fields_total", help: "Fields of requests that nothing knows." },
      ...{ labelNames: ["field"], registers: [this.#registry] },
    });
    this.#unknownFields.inc({ field: "other" }, 0);
    this.#unsubscribe = llm.onStep(this.#listener());
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  /** Prometheus' text format. */
  text(): Promise<string> {
    return this.#registry.metrics();
  }

  observeInterToken(replica: number, seconds: number): void {
    this.#interToken[replica]!.observe(seconds);
    for (const listener of this.#interTokenListeners) listener(replica, seconds);
  }

  /** Calls `listener` for every time between tokens from now on. @returns a function that ends the calls. */
  onInterToken(listener: (replica: number, seconds: number) => void): () => void {
    this.#interTokenListeners.add(listener);
    return () => this.#interTokenListeners.delete(listener);
  }

  /** @param tokens of the longest of a prompt's completions. */
  observeLongest(replica: number, tokens: number): void {
    this.#longest[replica]!.observe(tokens);
  }

  countRequest(handler: string, status: number): void {
    this.#requests.inc({ handler, status: String(status) });
  }

  countUnknownFields(field: string, count: number): void {
    this.#unknownFields.inc({ field }, count);
  }

  [Symbol.dispose](): void {
    this.#unsubscribe();
  }

  #listener(): (report: StepReport) => void {
    const iterationTokens = this.#histogram("iteration_tokens_total", "Tokens computed in a step.", TOKENS);
    const cached = new Counter({
      ...{ name: "vllm:prompt_tokens_cached_total", help: "Prompt tokens found in the prefix cache." },
      ...{ labelNames: LABELS, registers: [this.#registry] },
    });
    const successes = new Counter({
      ...{ name: "vllm:request_success_total", help: "Completions by how they ended." },
      ...{ labelNames: [...LABELS, "finished_reason"], registers: [this.#registry] },
    });
    for (const labels of this.#labels) {
      cached.inc(labels, 0);
      for (const reason of ["stop", "length", "abort", "error"])
        successes.inc({ ...labels, finished_reason: reason }, 0);
    }
    const histograms = HISTOGRAMS.map(([name, help, buckets, read]) => {
      return { histogram: this.#histogram(name, help, buckets), read };
    });
    return ({ replica, numBatchedTokens, finished }) => {
      const labels = this.#labels[replica]!;
      if (numBatchedTokens > 0) iterationTokens[replica]!.observe(numBatchedTokens);
      for (const request of finished) {
        cached.inc(labels, request.cachedTokens);
        for (const reason of request.finishReasons) successes.inc({ ...labels, finished_reason: reason });
        for (const { histogram, read } of histograms) {
          const value = read(request);
          if (value !== undefined) histogram[replica]!.observe(value);
        }
      }
    };
  }

  /** A gauge that is read off each replica when it is asked for. */
  #gauge(
    name: string,
    help: string,
    read: (replica: Replica) => number,
    more: Readonly<Record<string, (replica: Replica) => unknown>> = {},
  ): void {
    const samples = this.#replicas.map((replica, i) => {
      const rest = Object.entries(more).map(([label, value]) => [label, String(value(replica))]);
      return { replica, labels: { ...this.#labels[i]!, ...Object.fromEntries(rest) } };
    });
    new Gauge({
      ...{ name, help, labelNames: [...LABELS, ...Object.keys(more)], registers: [this.#registry] },
      collect() {
        for (const { replica, labels } of samples) this.set(labels, read(replica));
      },
    });
  }

  /** A counter whose total each replica keeps. */
  #counter(name: string, help: string, read: (stats: Replica["stats"]) => number): void {
    const [replicas, labels] = [this.#replicas, this.#labels];
    new Counter({
      ...{ name: `vllm:${name}`, help, labelNames: LABELS, registers: [this.#registry] },
      collect() {
        this.reset();
        for (const [i, { stats }] of replicas.entries()) this.inc(labels[i]!, read(stats));
      },
    });
  }

  /** One of each replica. */
  #histogram(name: string, help: string, buckets: readonly number[]): readonly Histogram.Internal<string>[] {
    const histogram = new Histogram({
      ...{ name: `vllm:${name}`, help, labelNames: LABELS },
      ...{ buckets: [...buckets], registers: [this.#registry] },
    });
    return this.#labels.map((labels) => {
      histogram.zero(labels);
      return histogram.labels(labels);
    });
  }
}
