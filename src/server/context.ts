import type { Context, Hono } from "hono";
import type { AsyncLLM } from "../async/async-llm.ts";
import { Turns } from "../chat/turns.ts";
import { Admission } from "./admission.ts";
import type { Caller } from "./auth.ts";
import { BodyParser } from "./body/body-parser.ts";
import { EngineWatch } from "./engine-view/engine-watch.ts";
import { ApiError } from "./errors.ts";
import { ServerMetrics } from "./metrics.ts";
import type { ServerConfig } from "./options.ts";
import { type LogSink, ServerLog } from "./request-log.ts";
import { ResponseStore } from "./response-store.ts";
import type { TrackedRequest } from "./tracked-request.ts";
import { UnknownFieldLog } from "./unknown-field-log.ts";

/** The parts of one server, shared by its routes. */
export interface ServerContext {
  readonly llm: AsyncLLM;
  readonly config: ServerConfig;
  readonly admission: Admission;
  readonly bodies: BodyParser;
  readonly metrics: ServerMetrics;
  readonly log: ServerLog;
  readonly unknownFields: UnknownFieldLog;
  readonly turns: Turns;
  readonly responses: ResponseStore;
  /** Of each replica. */
  readonly watches: readonly EngineWatch[];
  /** Unix time in seconds. */
  readonly startedAt: number;
}

/** Types of Hono's bindings and of the variables that middleware sets on a request. */
export interface ServerEnv {
  Bindings: { readonly server?: RequestTimeouts };
  Variables: { tracked: TrackedRequest; caller: Caller };
}

/** The part of Bun's server that routes use. */
export interface RequestTimeouts {
  timeout(request: Request, seconds: number): void;
}

export type ServerApp = Hono<ServerEnv>;
export type RequestContext = Context<ServerEnv>;

/** Characters of stored responses, which are in memory. */
const MAX_STORED_RESPONSES = 64 * 2 ** 20;

/** @throws ConfigError for parsers that do not go together. */
export function createContext(llm: AsyncLLM, config: ServerConfig, sink: LogSink): ServerContext {
  const metrics = new ServerMetrics(llm, config.servedModelNames[0]!);
  const log = new ServerLog(sink);
  return {
    ...{ llm, config, metrics, log },
    admission: new Admission({
      get maxCompletions() {
        const living = llm.replicas.filter(({ failure }) => !failure).length;
        return living * llm.config.maxNumSeqs + config.maxQueueLength;
      },
      maxConcurrentPerKey: config.maxConcurrentPerKey,
    }),
    bodies: new BodyParser({ maxPromptTokens: llm.maxModelLen }),
    unknownFields: new UnknownFieldLog(metrics, log),
    turns: new Turns(llm, config),
    responses: new ResponseStore(MAX_STORED_RESPONSES),
    watches: llm.replicas.map((_, replica) => new EngineWatch(llm, metrics, replica)),
    startedAt: Math.floor(Date.now() / 1000),
  };
}

/**
 * The served name that a request asks for; the first if it names none.
 * @throws ApiError 404 `model_not_found`.
 */
export function servedModel({ config }: ServerContext, model: string | null | undefined): string {
  if (model === undefined || model === null) return config.servedModelNames[0]!;
  if (config.servedModelNames.includes(model)) return model;
  const message = `the model "${model.slice(0, 200)}" is not served here`;
  throw new ApiError(404, "model_not_found", message, "model");
}
