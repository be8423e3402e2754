/** Flags of `vllm serve` for what Octavo does not do. They are refused by name: ignored, they would mislead. */
const UNSUPPORTED: ReadonlySet<string> = new Set([
  ...["enable-lora", "lora-modules", "max-loras", "max-lora-rank", "max-cpu-loras", "lora-dtype"],
  ...["quantization", "kv-cache-dtype", "calculate-kv-scales", "kv-cache-memory", "num-gpu-blocks-override"],
  ...["speculative-config", "spec-method", "spec-model", "spec-tokens"],
  ...["enable-auto-tool-choice", "tool-call-parser", "tool-parser-plugin", "tool-server"],
  ...["reasoning-parser", "reasoning-config", "structured-outputs-config", "guided-decoding-backend"],
  ...[
    "pipeline-parallel-size",
    "data-parallel-size",
    "enable-expert-parallel",
    "decode-context-parallel-size",
  ],
  ...["distributed-executor-backend", "nnodes", "node-rank", "api-server-count", "headless"],
  ...["trust-remote-code", "tokenizer", "tokenizer-mode", "tokenizer-revision", "code-revision"],
  ...["hf-config-path", "hf-overrides", "hf-token", "config-format", "runner", "convert", "task"],
  ...["cpu-offload-gb", "swap-space", "kv-offloading-size", "kv-transfer-config", "kv-events-config"],
  ...[
    "enable-sleep-mode",
    "compilation-config",
    "attention-backend",
    "attention-config",
    "logits-processors",
  ],
  ...["limit-mm-per-prompt", "mm-processor-kwargs", "allowed-local-media-path", "language-model-only"],
  ...["override-generation-config", "enable-chunked-prefill", "prefix-caching-hash-algo", "async-scheduling"],
  ...["max-num-partial-prefills", "long-prefill-token-threshold", "scheduling-policy"],
  ...["chat-template-content-format", "default-chat-template-kwargs", "response-role", "max-log-len"],
  ...["enable-force-include-usage"],
  ...["enable-server-load-tracking", "otlp-traces-endpoint", "collect-detailed-traces", "disable-log-stats"],
  ...["ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "uds", "root-path", "middleware", "uvicorn-log-level"],
  ...["allowed-methods", "allowed-headers", "allow-credentials"],
]);

const SHORT: Readonly<Record<string, string>> = {
  ...{ "-q": "quantization", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size" },
  ...{ "-ep": "enable-expert-parallel", "-O": "compilation-config", "-cc": "compilation-config" },
};

/** The message for a flag that vLLM has and the command lacks; undefined when vLLM has none of that name either. */
export function unsupportedFlag(flag: string): string | undefined {
  const name = SHORT[flag] ?? flag.replace(/^--(?:no-)?/, "");
  return UNSUPPORTED.has(name) ? `${flag} is not supported yet` : undefined;
}
