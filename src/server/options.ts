import { ConfigError } from "../base/errors.ts";
import { REASONING_PARSERS, TOOL_CALL_PARSERS } from "../formats/registry.ts";

/** Fields of a reply in which thoughts can come. */
export const REASONING_FIELDS = ["reasoning", "reasoning_content", "both"] as const;
export type ReasoningField = (typeof REASONING_FIELDS)[number];

/** Options of the HTTP server. Durations are in seconds. */
export interface ServerOptions {
  /** Address to listen on. Other than loopback, it needs `apiKeys` or `allowUnauthenticated`. Default 127.0.0.1. */
  host?: string;
  /** 0: any free port. Default 8000. */
  port?: number;
  /** Names that requests may give as `model`; replies carry the one asked for. Default: the name the model was loaded by. */
  servedModelNames?: readonly string[];
  /** Keys of which each request must bring one, as `Authorization: Bearer`. Default none: everybody may ask. */
  apiKeys?: readonly string[];
  /** Listen on other than loopback addresses without keys. Default false. */
  allowUnauthenticated?: boolean;
  /** Origins whose pages may call the server; `*`: all. Default none. */
  corsOrigins?: readonly string[];
  /**
   * Names that requests may call the server by, besides addresses, local names (without a dot, `*.localhost`, `*.local`, `*.internal`) and the
   * machine's; `*`: all. Default: none without keys on a loopback address, where any page that a browser shows could ask, else all.
   */
  allowedHosts?: readonly string[];
  /** Largest request body in bytes; larger ones get 413. Default 4 MiB. */
  maxRequestBytes?: number;
  /** Log-probabilities that a reply may have: prompts × n × tokens × (logprobs + 1). Larger ones get 400. Default 2^20. */
  maxReplyLogprobs?: number;
  /** Completions that may wait besides the `maxNumSeqs` of each replica that run; more get 503. Default 2048. */
  maxQueueLength?: number;
  /** Requests of one key (or of all without keys) under way at once; more get 429. 0: no limit. Default 0. */
  maxConcurrentPerKey?: number;
  /** A request that takes longer gets 504. Default 600. */
  requestTimeoutSeconds?: number;
  /** A request of which nothing was computed for so long gets 503. Default 60. */
  queueTimeoutSeconds?: number;
  /** A streaming client that reads nothing for so long is dropped. Default 30. */
  writeStallSeconds?: number;
  /** Time from `stop()`, when `/ready` begins to fail, until requests are refused; routers need some to notice. Default 0. */
  shutdownDelaySeconds?: number;
  /** Time that `stop()` then gives requests to finish. Default 30. */
  drainSeconds?: number;
  /** `usage.prompt_tokens_details.cached_tokens` in replies. Default false. */
  enablePromptTokensDetails?: boolean;
  /**
   * Reply with an `X-Request-Id` header, and end the reply's id with it: the request's own, if it has at most 128
   * printable characters. Default false.
   */
  enableRequestIdHeaders?: boolean;
  /** Requests share cached prefixes only with requests of the same key. Default: true with several keys. */
  isolateCacheByKey?: boolean;
  /** Tokens per event of a stream, after its first, unless the request says otherwise. Default 1. */
  streamInterval?: number;
  /** The form of the model's tool calls, by vLLM's name; `none`: calls are text. Default `auto`: as its chat template says. */
  toolCallParser?: string;
  /** The form of the model's thoughts, likewise; `none`: they are text. Default `auto`: as its chat template says. */
  reasoningParser?: string;
  /** The field of messages that has the thoughts: `reasoning`, `reasoning_content`, or `both`. Default `reasoning`. */
  reasoningField?: ReasoningField;
  /** Do not show tools to the model when `tool_choice` is none. Default false. */
  excludeToolsWhenToolChoiceNone?: boolean;
  /** One line of JSON on standard error for each request. Default true. */
  logRequests?: boolean;
  /** Put prompts into those lines. Default false. */
  logPrompts?: boolean;
}

/** `ServerOptions` after defaults and validation. */
export type ServerConfig = Readonly<Required<ServerOptions>>;

/** Defaults that do not depend on the model or on other options. */
export const SERVER_DEFAULTS = {
  host: "127.0.0.1",
  port: 8000,
  apiKeys: [] as readonly string[],
  allowUnauthenticated: false,
  corsOrigins: [] as readonly string[],
  maxRequestBytes: 4 * 2 ** 20,
  maxReplyLogprobs: 2 ** 20,
  maxQueueLength: 2048,
  maxConcurrentPerKey: 0,
  requestTimeoutSeconds: 600,
  queueTimeoutSeconds: 60,
  writeStallSeconds: 30,
  shutdownDelaySeconds: 0,
  drainSeconds: 30,
  enablePromptTokensDetails: false,
  enableRequestIdHeaders: false,
  streamInterval: 1,
  toolCallParser: "auto",
  reasoningParser: "auto",
  reasoningField: "reasoning",
  excludeToolsWhenToolChoiceNone: false,
  logRequests: true,
  logPrompts: false,
} as const satisfies ServerOptions;

type Kind =
  | { readonly kind: "flag" | "text" | "texts" }
  | { readonly kind: "number"; readonly range: Range }
  | { readonly kind: "choice"; readonly values: readonly string[] };
type Range = { readonly min: number; readonly max: number; readonly integer: boolean };

const FLAG: Kind = { kind: "flag" };
const TEXTS: Kind = { kind: "texts" };
const choice = (values: readonly string[]): Kind => ({ kind: "choice", values });
const integer = (min: number, max: number): Kind => ({ kind: "number", range: { min, max, integer: true } });
/** Timers take at most 2^31 − 1 ms. */
const SECONDS: Kind = { kind: "number", range: { min: 0, max: 2_000_000, integer: false } };

const KINDS: Readonly<Record<keyof ServerOptions, Kind>> = {
  host: { kind: "text" },
  port: integer(0, 65535),
  servedModelNames: TEXTS,
  apiKeys: TEXTS,
  allowUnauthenticated: FLAG,
  corsOrigins: TEXTS,
  allowedHosts: TEXTS,
  maxRequestBytes: integer(1, 2 ** 30),
  maxReplyLogprobs: integer(1, 2 ** 31),
  maxQueueLength: integer(0, 2 ** 31),
  maxConcurrentPerKey: integer(0, 2 ** 31),
  requestTimeoutSeconds: SECONDS,
  queueTimeoutSeconds: SECONDS,
  writeStallSeconds: SECONDS,
  shutdownDelaySeconds: SECONDS,
  drainSeconds: SECONDS,
  enablePromptTokensDetails: FLAG,
  enableRequestIdHeaders: FLAG,
  isolateCacheByKey: FLAG,
  streamInterval: integer(1, 2 ** 31),
  toolCallParser: choice(TOOL_CALL_PARSERS),
  reasoningParser: choice(REASONING_PARSERS),
  reasoningField: choice(REASONING_FIELDS),
  excludeToolsWhenToolChoiceNone: FLAG,
  logRequests: FLAG,
  logPrompts: FLAG,
};

/**
 * Checks the options and fills in defaults.
 * @param modelName The name that the model is served under without `servedModelNames`.
 * @throws ConfigError naming the option.
 */
export function resolveServerOptions(options: ServerOptions, modelName: string): ServerConfig {
  const given = Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
  for (const [name, value] of Object.entries(given)) check(name, value);
  const severalKeys = (options.apiKeys?.length ?? 0) > 1;
  const { host = SERVER_DEFAULTS.host, apiKeys = [] } = options;
  const allowedHosts = isLoopback(host) && apiKeys.length === 0 ? [] : ["*"];
  const config = {
    ...{ servedModelNames: [modelName], isolateCacheByKey: severalKeys, allowedHosts },
    ...SERVER_DEFAULTS,
    ...given,
  };
  if (config.servedModelNames.length === 0)
    throw new ConfigError("servedModelNames", "servedModelNames must not be empty");
  return Object.freeze(config);
}

/** The address cannot be reached from other machines. */
function isLoopback(host: string): boolean {
  return /^(localhost|127(\.\d{1,3}){3}|\[?::1\]?)$/.test(host);
}

/**
 * Refuses an address that other machines can reach, unless requests need keys or the server may be open.
 * @throws ConfigError
 */
export function checkExposure({ host, apiKeys, allowUnauthenticated }: ServerConfig): void {
  if (isLoopback(host) || apiKeys.length > 0 || allowUnauthenticated) return;
  const message = `${host} can be reached from other machines: set apiKeys, or allowUnauthenticated`;
  throw new ConfigError("host", message);
}

function check(name: string, value: unknown): void {
  if (!Object.hasOwn(KINDS, name)) throw new ConfigError(name, `unknown option "${name}"`);
  const expected = mismatch(KINDS[name as keyof ServerOptions], value);
  if (expected !== undefined) throw new ConfigError(name, `${name} must be ${expected}`);
}

/** A description of the kind of value expected, if `value` is none; else undefined. */
function mismatch(kind: Kind, value: unknown): string | undefined {
  const isText = (entry: unknown) => typeof entry === "string" && entry !== "";
  switch (kind.kind) {
    case "flag":
      return typeof value === "boolean" ? undefined : "true or false";
    case "text":
      return isText(value) ? undefined : "a non-empty string";
    case "texts":
      return Array.isArray(value) && value.every(isText) ? undefined : "a list of non-empty strings";
    case "choice":
      return kind.values.includes(value as string) ? undefined : `one of ${kind.values.join(", ")}`;
    case "number": {
      const { min, max, integer } = kind.range;
      const fits = typeof value === "number" && value >= min && value <= max;
      if (fits && (!integer || Number.isInteger(value))) return undefined;
      return `${integer ? "an integer" : "a number"} from ${min} to ${max}`;
    }
  }
}
