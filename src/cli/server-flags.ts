import { type Command, InvalidArgumentError, Option } from "commander";
import type { ServerOptions } from "../server/options.ts";
import { addFlags, type FlagTable, givenFlags } from "./flag-table.ts";
import { integerValue, jsonValue, listValue, numberValue } from "./flag-values.ts";
import { addEffectlessFlags, EFFECTLESS_SERVER_FLAGS } from "./vllm-flags.ts";

/** The server's options, one for one, under vLLM's names where it has them. */
export const SERVER_FLAGS: FlagTable<keyof ServerOptions> = {
  host: ["--host <address>", "address to listen on; others than loopback need a key (default: 127.0.0.1)"],
  port: ["--port <number>", "0: any free port (default: 8000)", integerValue],
  servedModelNames: [
    "--served-model-name <name>",
    "name that requests give as model; repeatable (default: the model)",
    listValue,
  ],
  apiKeys: [
    "--api-key <key>",
    "key that requests must bring; repeatable; VLLM_API_KEY also sets it (default: none)",
    listValue,
  ],
  allowUnauthenticated: ["--allow-unauthenticated", "listen beyond loopback without a key"],
  corsOrigins: [
    "--allowed-origins <origin>",
    'web pages that may call, e.g. https://example.com or ["*"]; repeatable (default: none)',
    textsValue,
  ],
  allowedHosts: [
    "--allowed-hosts <name>",
    "names of the server besides local ones; repeatable; * is all (default: none without a key, else all)",
    textsValue,
  ],
  maxRequestBytes: ["--max-request-bytes <bytes>", "largest request body (default: 4194304)", integerValue],
  maxReplyLogprobs: [
    "--max-reply-logprobs <count>",
    "log-probabilities that a reply may have (default: 1048576)",
    integerValue,
  ],
  maxQueueLength: [
    "--max-queue-length <count>",
    "completions that may wait; more get 503 (default: 2048)",
    integerValue,
  ],
  maxConcurrentPerKey: [
    "--max-concurrent-per-key <count>",
    "requests of a key at once; more get 429; 0: no limit (default: 0)",
    integerValue,
  ],
  requestTimeoutSeconds: [
    "--request-timeout <seconds>",
    "longer requests get 504 (default: 600)",
    numberValue,
  ],
  queueTimeoutSeconds: [
    "--queue-timeout <seconds>",
    "requests that wait longer get 503 (default: 60)",
    numberValue,
  ],
  writeStallSeconds: [
    "--write-stall-timeout <seconds>",
    "clients that read nothing for so long are dropped (default: 30)",
    numberValue,
  ],
  shutdownDelaySeconds: [
    "--shutdown-delay <seconds>",
    "on SIGTERM, /ready fails for so long before requests are refused (default: 0)",
    numberValue,
  ],
  drainSeconds: [
    "--shutdown-timeout <seconds>",
    "on SIGTERM, requests under way get so long to finish (default: 30)",
    numberValue,
  ],
  enablePromptTokensDetails: ["--enable-prompt-tokens-details", "report cached prompt tokens in usage"],
  enableRequestIdHeaders: [
    "--enable-request-id-headers",
    "reply with X-Request-Id, and use it as the reply's id",
  ],
  isolateCacheByKey: [
    "--no-isolate-cache-by-key",
    "share cached prefixes between keys (default: each of several keys has its own)",
  ],
  streamInterval: ["--stream-interval <tokens>", "tokens per event of a stream (default: 1)", integerValue],
  toolCallParser: [
    "--tool-call-parser <name>",
    "form of the model's tool calls, or none (default: as its chat template says)",
  ],
  reasoningParser: [
    "--reasoning-parser <name>",
    "form of the model's thoughts, or none (default: as its chat template says)",
  ],
  reasoningField: [
    "--reasoning-field <name>",
    "field of replies for thoughts: reasoning, reasoning_content or both (default: reasoning)",
  ],
  excludeToolsWhenToolChoiceNone: [
    "--exclude-tools-when-tool-choice-none",
    "show no tools to a model that may call none",
  ],
  logRequests: ["--no-enable-log-requests", "no log line for each request"],
  logPrompts: ["--log-prompts", "put prompts into the log"],
};

/** vLLM's other names of `--no-enable-log-requests`. */
const NO_REQUEST_LOG = ["--disable-log-requests", "--disable-uvicorn-access-log"];

/** Adds the server's options as flags, and those of vLLM's server that have no effect here. */
export function addServerFlags(command: Command): Command {
  addFlags(command, "Server:", SERVER_FLAGS);
  for (const flag of NO_REQUEST_LOG) command.addOption(new Option(flag).hideHelp());
  return addEffectlessFlags(command, EFFECTLESS_SERVER_FLAGS);
}

/** The server's options that were given; those left out keep the server's defaults. */
export function serverOptions(command: Command): ServerOptions {
  const silent = NO_REQUEST_LOG.some((flag) => command.getOptionValue(new Option(flag).attributeName()));
  return { ...(silent && { logRequests: false }), ...givenFlags<ServerOptions>(command, SERVER_FLAGS) };
}

/** A text, or a JSON list of them as vLLM takes origins. */
function textsValue(text: string, previous: readonly string[] = []): readonly string[] {
  if (!text.startsWith("[")) return [...previous, text];
  const texts = jsonValue(text);
  if (!Array.isArray(texts) || !texts.every((item) => typeof item === "string"))
    throw new InvalidArgumentError(`${text} is not a list of texts.`);
  return [...previous, ...texts];
}
