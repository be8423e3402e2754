import { type Command, Option } from "commander";
import { ConfigError } from "../base/errors.ts";

/** Flags of `vllm serve` that change nothing here, for one reason. They are accepted with a line that says it. */
interface EffectlessFlags {
  /** Completes "--flag has no effect: …". */
  readonly because: string;
  /** Flags without a value; their `--no-` forms are accepted too. */
  readonly switches?: readonly string[];
  /** Flags without a value of which only the `--no-` form changes nothing. */
  readonly negated?: readonly string[];
  /** Flags with a value. */
  readonly values?: readonly string[];
  /** Flags with several values. */
  readonly lists?: readonly string[];
  /** The values that change nothing; others are refused. Default: all. */
  readonly only?: readonly string[];
}

const words = (text: string): readonly string[] => text.trim().split(/\s+/);

/** Switches of `vllm serve` for what Octavo does not do. Their `--no-` forms say what is so anyway. */
const REFUSED_SWITCHES: readonly string[] = words(`
  enable-lora enable-lora-bias fully-sharded-loras enable-sleep-mode enable-prompt-embeds enable-mm-embeds
  enable-force-include-usage return-tokens-as-token-ids enable-tokenizer-info-endpoint
  enable-log-outputs enable-log-deltas trust-request-chat-template allow-credentials
  disable-sliding-window enable-return-routed-experts enable-ssl-refresh tokens-only headless
  mm-encoder-only data-parallel-hybrid-lb data-parallel-external-lb guided-decoding-disable-fallback
  guided-decoding-disable-any-whitespace
`);

/** Flags with values of `vllm serve` for what Octavo does not do. */
const REFUSED_VALUES: readonly string[] = words(`
  lora-modules max-loras max-lora-rank max-cpu-loras lora-dtype default-mm-loras
  speculative-config spec-method spec-model spec-tokens tool-parser-plugin tool-server
  reasoning-parser-plugin reasoning-config structured-outputs-config
  guided-decoding-backend tokenizer tokenizer-revision hf-config-path hf-overrides rope-scaling
  rope-theta kv-transfer-config kv-events-config ec-transfer-config pooler-config override-pooler-config
  logits-processors io-processor-plugin override-generation-config override-attention-dtype
  scheduler-cls worker-extension-cls default-chat-template-kwargs otlp-traces-endpoint
  collect-detailed-traces ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs ssl-ciphers uds root-path
  middleware
`);

const PROXY = "put a proxy in front, see docs/deployment.md";

/** Remedies for refused flags that have one. */
const REMEDIES: Readonly<Record<string, string>> = {
  "hf-token": "set HF_TOKEN",
  "ssl-keyfile": PROXY,
  "ssl-certfile": PROXY,
  "ssl-ca-certs": PROXY,
  uds: PROXY,
  "root-path": PROXY,
  "data-parallel-size": "octavo serve has it",
};

const REFUSED = new Set([...REFUSED_SWITCHES, ...REFUSED_VALUES, ...Object.keys(REMEDIES)]);

/** Flags for what the engine does anyway, or what cannot matter to it. */
export const EFFECTLESS_ENGINE_FLAGS: readonly EffectlessFlags[] = [
  {
    because: "no code from a model folder is run",
    switches: ["trust-remote-code"],
    values: words("code-revision logits-processor-pattern"),
  },
  { because: "prompts are always computed in chunks", switches: ["enable-chunked-prefill"] },
  {
    because: "steps overlap anyway on a GPU; --no-overlap-scheduling turns that off",
    switches: words("async-scheduling disable-async-output-proc"),
  },
  { because: "preempted sequences are recomputed, not swapped", values: words("swap-space preemption-mode") },
  {
    because: "Octavo has one way to schedule, which does not change texts",
    switches: words("disable-hybrid-kv-cache-manager multi-step-stream-outputs scheduler-reserve-full-isl"),
    values: words(`
      max-num-partial-prefills max-long-partial-prefills long-prefill-token-threshold
      num-lookahead-slots num-scheduler-steps scheduler-delay-factor
    `),
  },
  { because: "requests are served in the order of arrival", values: ["scheduling-policy"], only: ["fcfs"] },
  {
    because: "the KV cache stays on the device; --kv-cache-memory-bytes sizes it",
    switches: words("kv-sharing-fast-prefill use-v2-block-manager"),
    values: words("num-gpu-blocks-override kv-offloading-size kv-offloading-backend"),
  },
  { because: "scales of the KV cache are the checkpoint's, or 1", switches: ["calculate-kv-scales"] },
  { because: "keys of cached prefixes are always SHA-256", values: ["prefix-caching-hash-algo"] },
  { because: "weights stay on the device", values: words("cpu-offload-gb cpu-offload-params") },
  {
    because: "Octavo has kernels and CUDA graphs of its own",
    switches: words("disable-cascade-attn enable-dbo"),
    values: words(`
      attention-backend attention-config model-impl moe-backend compilation-config optimization-level
      performance-mode max-seq-len-to-capture max-cudagraph-capture-size ubatch-size
      dbo-decode-token-threshold dbo-prefill-token-threshold
    `),
    lists: words("cudagraph-capture-sizes cuda-graph-sizes"),
  },
  {
    because: "weights are read by Octavo's own loader",
    switches: ["use-tqdm-on-load"],
    values: words(`
      safetensors-load-strategy model-loader-extra-config pt-load-map-location
      max-parallel-loading-workers
    `),
    lists: ["ignore-patterns"],
  },
  {
    because: "Octavo places work on the GPUs itself",
    switches: words(`
      enable-expert-parallel enable-eplb disable-custom-all-reduce ray-workers-use-nsight
      disable-nccl-for-dp-synchronization
    `),
    values: words(`
      distributed-executor-backend all2all-backend expert-placement-strategy eplb-config
      num-redundant-experts master-addr master-port
    `),
  },
  { because: "Octavo has its own workers", values: ["worker-cls"], only: ["auto"] },
  {
    because: "one machine is what runs, and every GPU of a model has all of its layers",
    values: words(`
      pipeline-parallel-size nnodes decode-context-parallel-size prefill-context-parallel-size
    `),
    only: ["1"],
  },
  {
    because: "one machine is what runs",
    values: words("node-rank data-parallel-rank data-parallel-start-rank"),
    only: ["0"],
  },
  {
    because: "replicas are threads of one process",
    values: words(`
      data-parallel-size-local data-parallel-address data-parallel-rpc-port data-parallel-backend
    `),
  },
  { because: "models generate text", values: words("runner task"), only: ["auto", "generate"] },
  { because: "models generate text", values: ["convert"], only: ["auto", "none"] },
  { because: "configurations are Hugging Face's", values: ["config-format"], only: ["auto", "hf"] },
  { because: "tokenizers are tokenizer.json", values: ["tokenizer-mode"], only: ["auto", "hf", "fast"] },
  { because: "log-probabilities are of the raw logits", values: ["logprobs-mode"], only: ["raw_logprobs"] },
  { because: "no weights are quantised", switches: ["allow-deprecated-quantization"] },
  {
    because: "only text is taken",
    switches: words(`
      disable-mm-preprocessor-cache interleave-mm-strings skip-mm-profiling disable-chunked-mm-input
      language-model-only enable-multimodal-encoder-data-parallel
    `),
    values: words(`
      limit-mm-per-prompt media-io-kwargs mm-processor-kwargs mm-processor-cache-gb
      mm-processor-cache-type mm-shm-cache-max-object-size-mb mm-encoder-tp-mode mm-encoder-attn-backend
      video-pruning-rate allowed-local-media-path
    `),
    lists: ["allowed-media-domains"],
  },
  {
    because: "no model here has state-space layers",
    values: words("mamba-cache-dtype mamba-ssm-cache-dtype mamba-block-size mamba-cache-mode"),
  },
  { because: "it is for other platforms", values: ["additional-config"] },
  { because: "that is off", negated: REFUSED_SWITCHES },
];

/** Flags for what the server does anyway, or what cannot matter to it. */
export const EFFECTLESS_SERVER_FLAGS: readonly EffectlessFlags[] = [
  {
    because: "no statistics are logged; /metrics has them",
    switches: words("disable-log-stats aggregate-engine-logging enable-logging-iteration-details"),
  },
  {
    because: "/metrics has a fixed set of metrics",
    switches: words("kv-cache-metrics cudagraph-metrics enable-mfu-metrics enable-layerwise-nvtx-tracing"),
    values: words("kv-cache-metrics-sample show-hidden-metrics-for-version"),
  },
  { because: "/load always counts requests", switches: ["enable-server-load-tracking"] },
  {
    because: "the log is lines of JSON on standard error; --no-enable-log-requests leaves requests out",
    switches: ["log-error-stack"],
    values: words("uvicorn-log-level log-config-file max-log-len disable-access-log-for-endpoints"),
  },
  {
    because: "one process serves, on several threads",
    switches: words("disable-frontend-multiprocessing fail-on-environ-validation"),
    values: ["api-server-count"],
  },
  {
    because: "headers have Bun's own limits",
    values: words("h11-max-incomplete-event-size h11-max-header-count"),
  },
  {
    because: "the documentation is /openapi.json, which needs a key where there are keys",
    switches: words("disable-fastapi-docs enable-offline-docs"),
  },
  {
    because:
      "tools may be called and thoughts are told apart wherever the chat template names a form that is known",
    switches: words("enable-auto-tool-choice enable-reasoning"),
  },
  { because: "the template decides", values: ["chat-template-content-format"], only: ["auto"] },
  { because: "replies have this role", values: ["response-role"], only: ["assistant"] },
  {
    because: "all methods and headers are allowed to --allowed-origins",
    values: words("allowed-methods allowed-headers"),
    only: ['["*"]', "*"],
  },
];

/** Adds the flags of a table, which the help leaves out. */
export function addEffectlessFlags(command: Command, table: readonly EffectlessFlags[]): Command {
  const add = (flags: string) => command.addOption(new Option(flags).hideHelp());
  for (const { switches = [], negated = [], values = [], lists = [] } of table) {
    for (const name of switches) add(`--${name}`);
    for (const name of [...switches, ...negated]) add(`--no-${name}`);
    for (const name of values) add(`--${name} <value>`);
    for (const name of lists) add(`--${name} <values...>`);
  }
  return command;
}

/**
 * Lines about the effectless flags that a command was given, a line each.
 * @throws ConfigError for a value that would change something.
 */
export function effectlessFlagNotes(command: Command): readonly string[] {
  const groups = [...EFFECTLESS_ENGINE_FLAGS, ...EFFECTLESS_SERVER_FLAGS];
  return groups.flatMap(({ because, switches = [], negated = [], values = [], lists = [], only }) =>
    [...switches, ...negated, ...values, ...lists].flatMap((name) => {
      const value = givenValue(command, name);
      if (value === undefined) return [];
      const flag = value === false ? `--no-${name}` : `--${name}`;
      // A configuration file can turn on what the command line has only the negation of.
      if (value === true && negated.includes(name)) throw new ConfigError(name, unsupportedFlag(flag)!);
      if (only !== undefined && !only.includes(String(value)))
        throw new ConfigError(name, `${flag} ${value} is not supported yet`);
      return [`${flag} has no effect: ${because}`];
    }),
  );
}

function givenValue(command: Command, name: string): unknown {
  const attribute = new Option(`--${name}`).attributeName();
  const source = command.getOptionValueSource(attribute);
  return source === undefined || source === "default" ? undefined : command.getOptionValue(attribute);
}

/** The message for a flag that vLLM has and Octavo refuses; undefined when vLLM has none of that name either. */
export function unsupportedFlag(flag: string): string | undefined {
  const name = flag.replace(/^--?/, "");
  if (!REFUSED.has(name)) return undefined;
  const remedy = REMEDIES[name];
  return `${flag} is not supported${remedy === undefined ? " yet" : `: ${remedy}`}`;
}
